//! What a check says: the words of it, apart from how they are found and how they are printed.

use serde::Serialize;

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// Neither good nor bad: something to know.
    Note,
    /// It works, but less well, or less safely, than it could.
    Warning,
    /// No device can be assigned, or not this one, before it is put right.
    Failure,
    /// It cannot be told from here.
    Unknown,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fix {
    /// What it does, and where, if that is no command.
    pub(super) how: String,
    /// What to type, as a user who may.
    pub(super) command: Option<String>,
    /// Whether only root may.
    pub(super) as_root: bool,
}

impl Fix {
    /// A command for root.
    pub(super) fn root(how: impl Into<String>, command: impl Into<String>) -> Self {
        Self {
            how: how.into(),
            command: Some(command.into()),
            as_root: true,
        }
    }

    /// Something that no command does.
    pub(super) fn by_hand(how: impl Into<String>) -> Self {
        Self {
            how: how.into(),
            command: None,
            as_root: false,
        }
    }

    /// The command as someone who is not root types it.
    fn with_sudo(mut self) -> Self {
        let quoted = |command: String| {
            // Not for a $ alone: the shell's own number, $$, is that of the user's shell.
            if command.contains(['|', '>', '<', '&', ';', '*']) {
                format!("sudo sh -c '{}'", command.replace('\'', "'\\''"))
            } else {
                format!("sudo {command}")
            }
        };
        if self.as_root {
            self.command = self.command.map(quoted);
        }
        self
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    /// How it stands.
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) what: String,
    /// What that means, where it does not go without saying.
    pub(super) why: Option<String>,
    /// What to do; any one of them helps.
    pub(super) fixes: Vec<Fix>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            what: what.into(),
            why: None,
            fixes: Vec::new(),
        }
    }

    pub(super) fn good(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Good, what)
    }

    pub(super) fn note(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Note, what)
    }

    pub(super) fn warning(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, what)
    }

    pub(super) fn failure(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Failure, what)
    }

    pub(super) fn unknown(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Unknown, what)
    }

    /// What it means.
    pub(super) fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// What to do about it.
    pub(super) fn fix(mut self, fix: Fix) -> Self {
        self.fixes.push(fix);
        self
    }

    /// What to do about it, several ways or none.
    pub(super) fn fixes(mut self, fixes: impl IntoIterator<Item = Fix>) -> Self {
        self.fixes.extend(fixes);
        self
    }
}

/// What was looked at in one place: the host, or a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Section {
    /// Where.
    pub(super) of: String,
    /// What was found there.
    pub(super) checks: Vec<Check>,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// Whether nothing fails.
    pub(super) ready: bool,
    /// The host first, then the devices as they were named.
    pub(super) sections: Vec<Section>,
}

impl Report {
    /// For someone who is root, or has to ask for it.
    pub(super) fn of(mut sections: Vec<Section>, is_root: bool) -> Self {
        let checks = || sections.iter().flat_map(|section| &section.checks);
        let ready = checks().all(|check| check.verdict != Verdict::Failure);
        if !is_root {
            for check in sections.iter_mut().flat_map(|section| &mut section.checks) {
                let fixes = std::mem::take(&mut check.fixes);
                check.fixes = fixes.into_iter().map(Fix::with_sudo).collect();
            }
        }
        Self { ready, sections }
    }

    /// How many checks have this verdict.
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        let checks = self.sections.iter().flat_map(|section| &section.checks);
        checks.filter(|check| check.verdict == verdict).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(fix: Fix, is_root: bool) -> Option<String> {
        let check = Check::failure("x", "y").fix(fix);
        let of = "host".into();
        let checks = vec![check];
        let report = Report::of(vec![Section { of, checks }], is_root);
        report.sections[0].checks[0].fixes[0].command.clone()
    }

    #[test]
    fn a_command_for_root_is_one_that_a_user_can_copy_as_well() {
        let modprobe = || Fix::root("load it", "modprobe vfio-pci");
        assert_eq!(command(modprobe(), true).unwrap(), "modprobe vfio-pci");
        let sudo = "sudo modprobe vfio-pci";
        assert_eq!(command(modprobe(), false).unwrap(), sudo);
        let quoted = Fix::root("x", "echo 'a b' > /sys/y");
        let sudo = "sudo sh -c 'echo '\\''a b'\\'' > /sys/y'";
        assert_eq!(command(quoted, false).unwrap(), sudo);
        let shell = Fix::root("x", "prlimit --pid $$");
        assert_eq!(command(shell, false).unwrap(), "sudo prlimit --pid $$");
        assert_eq!(command(Fix::by_hand("x"), false), None);
    }

    #[test]
    fn only_a_failure_makes_a_host_not_ready() {
        let report = |check| {
            let of = "host".into();
            let checks = vec![check];
            Report::of(vec![Section { of, checks }], true)
        };
        assert!(report(Check::warning("x", "y")).ready);
        assert!(report(Check::unknown("x", "y")).ready);
        let failed = report(Check::failure("x", "y"));
        assert!(!failed.ready);
        assert_eq!(failed.count(Verdict::Failure), 1);
    }
}
