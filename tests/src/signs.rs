//! Signs of a failure in what programs print: a Rust panic, a guest kernel's panic, an initramfs that did not fit. They fail the
//! scenario whatever it asserts on, because every byte from L1 is searched, including the output that the scenario never reads.

/// Who prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// A command in L1.
    Command,
    /// A VMM: its stdout is the guest's console.
    Guest,
    /// A VMM whose guest kernel is meant to panic.
    PanickingGuest,
}

/// Printed by the panic hook of Rust's standard library.
const RUST_PANIC: &str = "panicked at ";
/// Printed by Viaduct for what must not happen.
const DEFECT: &str = "defect of viaduct";
/// Printed by Linux at level EMERG, so `quiet` does not hide it. Mostly a guest with too little memory.
const TRUNCATED_INITRAMFS: &str = "Initramfs unpacking failed";
const KERNEL_PANIC: &str = "Kernel panic - not syncing";

impl Speaker {
    fn signs(self) -> &'static [&'static str] {
        match self {
            // A command may print the log of a guest that was meant to panic.
            Self::Command | Self::PanickingGuest => &[RUST_PANIC, DEFECT, TRUNCATED_INITRAMFS],
            Self::Guest => &[RUST_PANIC, DEFECT, TRUNCATED_INITRAMFS, KERNEL_PANIC],
        }
    }

    /// Names a stream for the report.
    fn stream(self, is_stdout: bool) -> &'static str {
        match (self, is_stdout) {
            (Self::Command, _) => "a command in L1",
            (_, true) => "a guest's console",
            (_, false) => "a VMM",
        }
    }
}

/// How many lines are kept after a sign. Rust prints the reason for a panic on the line after it.
const LINES_AFTER: u8 = 2;
/// A longer line is searched in parts, so that binary output does not pile up.
const LONGEST_LINE_BYTES: usize = 64 << 10;

/// Searches one stream of one program.
#[derive(Debug)]
pub(crate) struct Search {
    signs: &'static [&'static str],
    stream: &'static str,
    /// A line of which the end has not come yet.
    line: Vec<u8>,
    lines_to_keep: u8,
}

impl Search {
    /// A search of the stdout or stderr of this speaker.
    pub(crate) fn new(speaker: Speaker, is_stdout: bool) -> Self {
        Self {
            signs: speaker.signs(),
            stream: speaker.stream(is_stdout),
            line: Vec::new(),
            lines_to_keep: 0,
        }
    }

    /// Takes further output, in pieces of any size, and returns the lines with a sign and those right after one.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() > LONGEST_LINE_BYTES {
                found.extend(self.end());
            }
        }
        found
    }

    /// Ends the line that is not complete.
    pub(crate) fn end(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return None;
        }
        let line = String::from_utf8_lossy(&line);
        if self.signs.iter().any(|sign| line.contains(sign)) {
            self.lines_to_keep = LINES_AFTER + 1;
        }
        self.lines_to_keep = self.lines_to_keep.checked_sub(1)?;
        Some(format!("  {}: {}", self.stream, line.trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &[u8] = b"fine\nthread 'vcpu0' (7) panicked at vmm/src/vcpu.rs:1:2:\nindex out of bounds\nnote: run\nfine\n";

    #[test]
    fn a_panic_is_found_with_its_reason_however_its_bytes_come() {
        let mut whole = Search::new(Speaker::Command, false);
        let found = whole.take(PANIC);
        assert_eq!(found.len(), 3);
        assert!(
            found[0].contains("panicked at vmm/src/vcpu.rs"),
            "{found:?}"
        );
        assert!(found[1].contains("index out of bounds"), "{found:?}");
        let mut bytewise = Search::new(Speaker::Command, false);
        let pieces = PANIC.chunks(1).flat_map(|byte| bytewise.take(byte));
        assert_eq!(pieces.collect::<Vec<_>>(), found);
    }

    #[test]
    fn a_sign_on_a_line_without_an_end_is_found_when_the_output_ends() {
        let mut search = Search::new(Speaker::Guest, true);
        assert!(
            search
                .take(b"Initramfs unpacking failed: write error")
                .is_empty()
        );
        assert!(search.end().is_some());
        assert!(search.end().is_none());
    }

    #[test]
    fn a_kernel_panic_counts_on_the_console_of_a_guest_that_was_not_meant_to() {
        let line = b"[    1.0] Kernel panic - not syncing: VFS\r\n";
        assert_eq!(Search::new(Speaker::Guest, true).take(line).len(), 1);
        assert!(
            Search::new(Speaker::PanickingGuest, true)
                .take(line)
                .is_empty()
        );
        let viaduct = b"viaduct: the guest panicked\n";
        assert!(Search::new(Speaker::Guest, false).take(viaduct).is_empty());
    }
}
