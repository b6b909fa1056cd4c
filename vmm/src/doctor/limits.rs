//! What a process may have: locked memory, open files; and which pages there are for a guest's memory.

use super::{
    files::Files,
    report::{Check, Fix},
    system::User,
};

/// What a guest gets if nobody says otherwise.
const USUAL_MEMORY_KIB: u64 = 512 << 10;
/// What one with a few devices opens: see `run` (256, and 64 for each device).
const USUAL_FILES: u64 = 1024;

/// What is known of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    /// The hard limits: a process may go up to them by itself. `u64::MAX` is none.
    locked_bytes: Option<u64>,
    files: Option<u64>,
    /// Pages in the pools, by size in KiB: all, and those that are free.
    pools: Vec<(u64, u64, u64)>,
    /// `always`, `madvise` or `never`.
    transparent: Option<String>,
}

impl Limits {
    pub(super) fn read(files: &Files) -> Self {
        let text = files.text("proc/self/limits").unwrap_or_default();
        let transparent = files.text("sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = transparent.and_then(|text| {
            let (_, rest) = text.split_once('[')?;
            Some(rest.split_once(']')?.0.to_owned())
        });
        Self {
            locked_bytes: hard(&text, "Max locked memory"),
            files: hard(&text, "Max open files"),
            pools: pools(files),
            transparent: chosen,
        }
    }

    pub(super) fn checks(&self, user: &User) -> Vec<Check> {
        vec![
            self.locked(user),
            self.open_files(user),
            self.transparent(),
            self.hugepages(),
        ]
    }

    fn locked(&self, user: &User) -> Check {
        let name = "locked memory";
        if user.locks_without_limit() {
            return Check::good(name, "as much as guests want: this user needs no limit");
        }
        let Some(bytes) = self.locked_bytes else {
            return Check::unknown(name, "/proc/self/limits does not tell");
        };
        let kib = bytes / 1024;
        if bytes == u64::MAX {
            return Check::good(name, "no limit (ulimit -l)");
        }
        let means = "all of a guest's memory is locked while it has devices";
        let fixes = [
            Fix::root(
                "raise it in this shell",
                "prlimit --memlock=unlimited --pid $$",
            ),
            Fix::root(
                "for good, then log in again",
                format!(
                    "echo '{} - memlock unlimited' >> /etc/security/limits.d/viaduct.conf",
                    user.name
                ),
            ),
        ];
        if kib < USUAL_MEMORY_KIB {
            return Check::failure(
                name,
                format!("{kib} KiB, and a guest of 512 MiB wants {USUAL_MEMORY_KIB} KiB"),
            )
            .why(means)
            .fixes(fixes);
        }
        Check::note(
            name,
            format!("{} MiB: guests with devices may have that much", kib >> 10),
        )
        .why(means)
    }

    fn open_files(&self, user: &User) -> Check {
        let name = "open files";
        let Some(files) = self.files.filter(|_| !user.raises_limits()) else {
            return Check::good(
                name,
                "as many as guests want: this user may raise the limit",
            );
        };
        if files >= USUAL_FILES {
            return Check::good(
                name,
                format!("{files}: enough for what devices open, one for each interrupt"),
            );
        }
        Check::failure(
            name,
            format!("{files}, and a guest with a few devices wants {USUAL_FILES}"),
        )
        .why("each interrupt of a device is an open file")
        .fix(Fix::root(
            "raise it in this shell",
            format!("prlimit --nofile={USUAL_FILES} --pid $$"),
        ))
    }

    fn transparent(&self) -> Check {
        let name = "transparent huge pages";
        let enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
        match self.transparent.as_deref() {
            Some("always" | "madvise") => Check::good(name, "guests get them"),
            Some(_) => Check::warning(name, "switched off")
                .why("a guest's memory is mapped page by page: it starts slower and its devices' DMA is translated more slowly")
                .fix(Fix::root("give them to those who ask", format!("echo madvise > {enabled}"))),
            None => Check::note(name, "this kernel has none"),
        }
    }

    fn hugepages(&self) -> Check {
        let name = "reserved huge pages";
        let pools = self.pools.iter().filter(|(_, all, _)| *all > 0);
        let said: Vec<String> = pools
            .map(|(kib, all, free)| format!("{all} of {} MiB, {free} free", kib >> 10))
            .collect();
        if said.is_empty() {
            return Check::note(
                name,
                "none, which only --memory SIZE,hugepages=2M or 1G asks for",
            );
        }
        Check::note(name, said.join("; "))
    }
}

/// The hard limit of a line such as `Max open files   1024   524288   files` (proc_pid_limits(5)).
fn hard(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Documentation/admin-guide/mm/hugetlbpage.rst: folders `hugepages-2048kB`.
fn pools(files: &Files) -> Vec<(u64, u64, u64)> {
    let dir = "sys/kernel/mm/hugepages";
    let pool = |name: &String| {
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let number = |what| files.text(&format!("{dir}/{name}/{what}"))?.parse().ok();
        Some((
            kib.parse().ok()?,
            number("nr_hugepages")?,
            number("free_hugepages")?,
        ))
    };
    files.names(dir).iter().filter_map(pool).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn limits(locked: &str, open: &str) -> Limits {
        let machine = Recorded::new();
        let text = format!(
            "Limit  Soft Limit  Hard Limit  Units\nMax open files  16  {open}  files\n\
             Max locked memory  16  {locked}  bytes\n"
        );
        machine.file("proc/self/limits", text);
        machine.file(
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always madvise [never]\n",
        );
        machine.file(
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "8\n",
        );
        machine.file(
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "3\n",
        );
        Limits::read(&machine.files())
    }

    #[test]
    fn what_may_be_locked_is_compared_with_a_guest() {
        let of = |locked| limits(locked, "1024").locked(&User::ada());
        let check = of("65536");
        assert_eq!(check.verdict, Verdict::Failure);
        assert_eq!(
            check.what,
            "64 KiB, and a guest of 512 MiB wants 524288 KiB"
        );
        let command = check.fixes[0].command.as_deref();
        assert_eq!(command, Some("prlimit --memlock=unlimited --pid $$"));
        assert_eq!(of("1073741824").verdict, Verdict::Note);
        assert_eq!(of("unlimited").verdict, Verdict::Good);
        assert_eq!(
            Limits::default().locked(&User::ada()).verdict,
            Verdict::Unknown
        );
    }

    #[test]
    fn few_open_files_are_a_failure_and_huge_pages_that_are_off_a_warning() {
        let checks = limits("unlimited", "256").checks(&User::ada());
        let verdicts: Vec<Verdict> = checks.iter().map(|check| check.verdict).collect();
        use Verdict::{Failure, Good, Note, Warning};
        assert_eq!(verdicts, [Good, Failure, Warning, Note]);
        assert_eq!(checks[3].what, "8 of 2 MiB, 3 free");
    }
}
