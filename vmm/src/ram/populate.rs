//! RAM populated by all processors at once, and how far that is, for whoever waits.

use std::{
    convert::Infallible,
    io::{self, Write},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    Ram, RamError,
    range::{HUGE_PAGE, Range, madvise},
};

/// What one thread populates at a time. Large enough that the calls do not count; and small, because the kernel holds the lock of this
/// process's address space meanwhile, and every vCPU and every BAR that is mapped beside it waits for that.
pub(super) const POPULATE_CHUNK: usize = 2 * HUGE_PAGE;

/// How long somebody who watches goes without a word.
const PATIENCE: Duration = Duration::from_secs(2);

/// A part of a range.
type Chunk = (Arc<Range>, usize, usize);

/// What is to be populated, and how much of it somebody has begun.
struct Work {
    chunks: Vec<Chunk>,
    next: AtomicUsize,
}

impl Work {
    fn populate(&self) -> io::Result<()> {
        loop {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((range, offset, len)) = self.chunks.get(next) else {
                return Ok(());
            };
            populate_chunk(range, *offset, *len)?;
        }
    }

    /// Bytes that are begun, and all.
    fn progress(&self) -> (usize, usize) {
        let begun = self.next.load(Ordering::Relaxed).min(self.chunks.len());
        let sum = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.2).sum();
        (sum(&self.chunks[..begun]), sum(&self.chunks))
    }
}

impl Ram {
    /// Begins to populate all of it, on as many threads as there are processors.
    pub fn populate(&self) -> Populating {
        let ranges = self.ranges.iter();
        let work = Arc::new(Work {
            chunks: ranges.flat_map(|(_, range)| chunks(range)).collect(),
            next: AtomicUsize::new(0),
        });
        let (busy, done) = mpsc::channel();
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = (0..threads).map(|number| {
            let (work, busy) = (work.clone(), busy.clone());
            let thread = thread::Builder::new().name(format!("populate{number}"));
            thread.spawn(move || {
                let _busy = busy;
                work.populate()
            })
        });
        let workers = workers.collect();
        Populating {
            work,
            workers,
            done,
        }
    }
}

pub(super) fn chunks(range: &Arc<Range>) -> impl Iterator<Item = Chunk> + use<'_> {
    (0..range.len).step_by(POPULATE_CHUNK).map(|offset| {
        (
            range.clone(),
            offset,
            POPULATE_CHUNK.min(range.len - offset),
        )
    })
}

fn populate_chunk(range: &Range, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: `chunks` makes offset + len at most range.len.
    let start = unsafe { range.start.add(offset) };
    match madvise(start, len, libc::MADV_POPULATE_WRITE) {
        // Linux before 5.14 has no MADV_POPULATE_WRITE; the DMA map then populates by itself, slower.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// RAM that is being populated.
#[must_use]
pub struct Populating {
    work: Arc<Work>,
    workers: Vec<io::Result<JoinHandle<io::Result<()>>>>,
    /// Nothing comes: it ends when the last worker does.
    done: Receiver<Infallible>,
}

impl Populating {
    /// Waits until all of it is there, and says now and then how much is.
    pub fn wait(self) -> Result<(), RamError> {
        watch(&self.done, PATIENCE, || {
            let (begun, all) = self.work.progress();
            let (begun, all) = (begun >> 20, all >> 20);
            // Nobody is left to tell if stderr is closed.
            let _ = writeln!(
                io::stderr(),
                "viaduct: populating guest memory: {begun} of {all} MiB"
            );
        });
        for worker in self.workers {
            let ended = worker.map_err(RamError::Populate)?.join();
            ended
                .map_err(|_| RamError::Populate(io::Error::other("a thread died")))?
                .map_err(RamError::Populate)?;
        }
        Ok(())
    }
}

/// Waits for the end of `done`, with a word whenever it takes as long as `patience`.
fn watch(done: &Receiver<Infallible>, patience: Duration, mut say: impl FnMut()) {
    while let Err(RecvTimeoutError::Timeout) = done.recv_timeout(patience) {
        say();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_long_hears_of_it_until_the_end() {
        let (busy, done) = mpsc::channel();
        let mut busy = Some(busy);
        let mut words = 0;
        watch(&done, Duration::from_millis(1), || {
            words += 1;
            if words == 3 {
                busy = None;
            }
        });
        assert_eq!(words, 3);
        watch(&done, PATIENCE, || panic!("it has ended"));
    }

    #[test]
    fn progress_is_in_bytes_and_ends_with_all_of_them() {
        let range = Range::map(
            POPULATE_CHUNK + HUGE_PAGE,
            super::super::Pages::Small.into(),
        );
        let work = Work {
            chunks: chunks(&Arc::new(range.unwrap())).collect(),
            next: AtomicUsize::new(0),
        };
        let all = POPULATE_CHUNK + HUGE_PAGE;
        assert_eq!(work.progress(), (0, all));
        work.next.store(1, Ordering::Relaxed);
        assert_eq!(work.progress(), (POPULATE_CHUNK, all));
        work.populate().unwrap();
        assert_eq!(work.progress(), (all, all));
    }
}
