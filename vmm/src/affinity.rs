//! Which of the host's processors a thread runs on (sched_setaffinity(2)).

use std::io;

/// Processors that a set can name: the kernel's limit (CONFIG_NR_CPUS in arch/x86/Kconfig goes to 8192).
const MOST: usize = 8192;
const WORD_BITS: usize = u64::BITS as usize;

/// A set of processors, in the kernel's form.
type Set = [u64; MOST / WORD_BITS];

/// The processors that this thread may run on.
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    let mut set: Set = [0; MOST / WORD_BITS];
    // SAFETY: the kernel writes at most the length that it is told, which is the array's.
    match unsafe { libc::sched_getaffinity(0, size_of_val(&set), set.as_mut_ptr().cast()) } {
        0 => Ok((0..MOST).filter(|&number| contains(&set, number)).collect()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has this thread run on these processors only.
pub(crate) fn run_on(processors: &[usize]) -> io::Result<()> {
    let mut set: Set = [0; MOST / WORD_BITS];
    for processor in processors {
        let word = set.get_mut(processor / WORD_BITS);
        *word.ok_or(io::ErrorKind::InvalidInput)? |= 1 << (processor % WORD_BITS);
    }
    // SAFETY: the kernel reads at most the length that it is told, which is the array's.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), set.as_ptr().cast()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn contains(set: &Set, number: usize) -> bool {
    set[number / WORD_BITS] >> (number % WORD_BITS) & 1 != 0
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_its_processor_only() {
        let last = *allowed().unwrap().last().unwrap();
        let pinned = thread::spawn(move || {
            run_on(&[last]).unwrap();
            allowed().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert!(run_on(&[MOST]).is_err());
    }
}
