//! mmdebstrap: installs a minimal Debian with some packages into a folder, from the archive that this machine's apt uses.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::runner::System;
use super::{lines, mirror};
use crate::children::Owned;
use crate::error::{Doing, Error, Result, tail_of};
use crate::progress::note;

/// The release that everything is taken from.
pub(super) const SUITE: &str = "trixie";
/// What systems are: little, for nobody reads manuals there.
pub(super) const OPTIONS: [&str; 6] = [
    "--variant=minbase",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
];

/// An installation to be made.
pub(super) struct Installation {
    suite: &'static str,
    mirror: String,
    count: usize,
    command: Command,
    has_backports: bool,
}

impl Installation {
    /// A system with these packages, a name a line.
    pub(super) fn of(packages: &str) -> Result<Self> {
        Self::with(SUITE, &OPTIONS, packages)
    }

    /// These packages, a name a line, from this suite, with mmdebstrap's options.
    pub(super) fn with(suite: &'static str, options: &[&str], packages: &str) -> Result<Self> {
        let system = System::read();
        // Before anything is installed on this machine: without an archive that would be in vain.
        let mirror = mirror::find(&system)?;
        system.prepare()?;
        let mut command = Command::new("mmdebstrap");
        let names = lines(packages).collect::<Vec<_>>();
        command.args(options).args(apt_options());
        command.arg(format!("--include={}", names.join(",")));
        if let Some(keyring) = system.keyring() {
            command.arg(format!("--keyring={keyring}"));
        }
        Ok(Self {
            suite,
            mirror,
            count: names.len(),
            command,
            has_backports: false,
        })
    }

    /// What it does, for whoever waits for it.
    pub(super) fn shown(&self) -> String {
        let (suite, count, mirror) = (self.suite, self.count, &self.mirror);
        format!("Debian {suite} and {count} packages from {mirror}")
    }

    /// Takes these packages, as apt_preferences(5) names them, from the release's backports.
    pub(super) fn backport(&mut self, packages: &str) {
        let suite = self.suite;
        let pin = format!(
            "Package: {packages}\\nPin: release n={suite}-backports\\nPin-Priority: 990\\n"
        );
        let path = "\"$1\"/etc/apt/preferences.d";
        let hook = format!("mkdir -p {path}; printf '{pin}' > {path}/backports");
        self.command.arg(format!("--setup-hook={hook}"));
        self.has_backports = true;
    }

    /// The command, for further options and for variables that hooks read.
    pub(super) fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Makes it in `target`. `hear` gets every line that mmdebstrap and its hooks say; all of them are in `log` afterwards.
    pub(super) fn make(
        mut self,
        target: &Path,
        log: &Path,
        mut hear: impl FnMut(&str),
    ) -> Result<()> {
        let suite = self.suite;
        self.command.arg(suite).arg(target).arg(&self.mirror);
        if self.has_backports {
            let line = format!("deb {} {suite}-backports main", self.mirror);
            self.command.arg(line);
        }
        let shown = format!("{:?}", self.command);
        let doing = || "starting mmdebstrap".to_owned();
        self.command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = self.command.stderr(Stdio::piped()).spawn();
        let mut child = Owned::new(child.doing(doing)?);
        let mut said = String::new();
        let stderr = child.child().stderr.take().into_iter();
        let lines = stderr.flat_map(|stderr| BufReader::new(stderr).lines());
        for line in lines.map_while(std::result::Result::ok) {
            match line.strip_prefix("I: ") {
                Some(what) => note(what),
                None => hear(&line),
            }
            said.push_str(&line);
            said.push('\n');
        }
        fs::write(log, said).doing(|| format!("writing {}", log.display()))?;
        let status = child.wait();
        if status.success() {
            return Ok(());
        }
        Err(Error::Program {
            command: shown,
            status: status.to_string(),
            tail: format!("{}\n  the whole log: {}", tail_of(log, 15), log.display()),
        })
    }
}

/// How this machine's apt reaches its archives (a proxy, above all) holds for the tree as well.
fn apt_options() -> Vec<String> {
    let Ok(output) = Command::new("apt-config").arg("dump").output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let proxies = text.lines().filter(|line| {
        line.starts_with("Acquire::http") && line.contains("::Proxy") && !line.contains("\"\"")
    });
    proxies
        .map(|line| format!("--aptopt={}", line.trim_end_matches(';')))
        .collect()
}
