//! The Debian tree that everything is taken from: QEMU for the runner, L1's root disk, L2's kernel and tools. Made by
//! mmdebstrap; its programs run on the runner through the tree's own dynamic loader, so that neither a chroot nor the
//! runner's libraries are needed for them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::key::Key;
use super::{built, lines, mirror};
use crate::children::Owned;
use crate::error::{Doing, Error, Result, tail, tail_of};
use crate::progress::{note, step};
use crate::sys;

const SUITE: &str = "trixie";
const PACKAGES: &str = include_str!("../../../resources/lab/packages");
/// What keeps the tree small (nobody reads manuals there), and what every L1 loads decompressed: xz is slow in emulation.
const OPTIONS: [&str; 7] = [
    "--variant=minbase",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--customize-hook=chroot \"$1\" sh -ec 'cd /usr/lib/modules/*/kernel; \
     find arch/x86/kvm virt drivers/vfio drivers/crypto/ccp drivers/net/ethernet/intel/igb* \
     -name \"*.xz\" | xargs xz -d; depmod \"$(ls /usr/lib/modules)\"'",
];
/// How the root disk is made of the tree. Sparse, so its size is only a bound.
const DISK_OPTIONS: [&str; 10] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-O",
    "^has_journal,^metadata_csum",
    "-m",
    "0",
    "-L",
    "lab-root",
];
const DISK_SIZE: &str = "1500M";

/// A finished tree in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    dir: PathBuf,
    key: String,
}

impl Tree {
    /// The tree for the present list of packages, made if it is not in the cache.
    pub(super) fn ready(cache: &Path) -> Result<Self> {
        let key = OPTIONS
            .iter()
            .chain(&DISK_OPTIONS)
            .fold(Key::new(), |key, option| key.with(option));
        let key = lines(PACKAGES).fold(key.with(SUITE).with(DISK_SIZE), |key, name| key.with(name));
        let tree = Self {
            dir: cache.join(format!("tree-{key}")),
            key: key.to_string(),
        };
        if !tree.dir.exists() {
            prepare_runner()?;
            let mirror = mirror::find()?;
            let count = lines(PACKAGES).count();
            let what = format!("Installing Debian {SUITE} and {count} packages from {mirror}");
            step(&what, || built(&tree.dir, |dir| make(dir, &mirror)))?;
        }
        Ok(tree)
    }

    /// The name of this tree, for the keys of what is made from it.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The tree's root folder.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The tree as a disk with an ext4 file system.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    /// A program of the tree, to be run on the runner.
    pub(crate) fn program(&self, path: &str) -> Command {
        self.program_as(path, path.rsplit('/').next().unwrap_or(path))
    }

    /// The same under another name, for programs that go by it.
    pub(crate) fn program_as(&self, path: &str, name: &str) -> Command {
        program(&self.root(), path, name)
    }
}

fn program(root: &Path, path: &str, name: &str) -> Command {
    let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
    command.arg("--argv0").arg(name);
    command
        .arg("--library-path")
        .arg(root.join("usr/lib/x86_64-linux-gnu"));
    command.arg(root.join(path.trim_start_matches('/')));
    command
}

/// Installs the one tool that the runner itself needs, or says what to type.
fn prepare_runner() -> Result<()> {
    if !sys::is_root() {
        return Err(Error::Missing {
            what: "making the host image needs root (it installs a Debian tree)".into(),
            fix: "make it once as root, with this user's cache:  sudo --preserve-env=HOME,PATH cargo lab image"
                .into(),
        });
    }
    if on_path("mmdebstrap") {
        return Ok(());
    }
    if !on_path("apt-get") {
        return Err(Error::Missing {
            what: "mmdebstrap is missing, and there is no apt-get to install it with".into(),
            fix: "install it with this system's package manager, or use Debian bookworm or later"
                .into(),
        });
    }
    step("Installing mmdebstrap on this machine", || {
        apt_get(&["update"])?;
        apt_get(&[
            "install",
            "-y",
            "--no-install-recommends",
            "mmdebstrap",
            "debian-archive-keyring",
        ])
    })
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .arg("-q")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    succeed(command)
}

/// Runs a program to its end; its words are only shown if it fails.
pub(super) fn succeed(mut command: Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(|| shown.clone())?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let tail = tail(&String::from_utf8_lossy(&said), 15);
    Err(Error::Program {
        command: shown,
        status: output.status.to_string(),
        tail,
    })
}

fn make(dir: &Path, mirror: &str) -> Result<()> {
    let root = dir.join("root");
    install(&root, mirror, &dir.join("mmdebstrap.log"))?;
    note("making the root disk");
    let mut disk = program(&root, "/usr/sbin/mke2fs", "mke2fs");
    disk.env("MKE2FS_CONFIG", root.join("etc/mke2fs.conf"));
    disk.args(DISK_OPTIONS)
        .arg("-d")
        .arg(&root)
        .arg(dir.join("root.img"))
        .arg(DISK_SIZE);
    succeed(disk)
}

fn install(root: &Path, mirror: &str, log: &Path) -> Result<()> {
    let packages = lines(PACKAGES).collect::<Vec<_>>().join(",");
    let mut command = Command::new("mmdebstrap");
    command
        .args(OPTIONS)
        .args(apt_options())
        .arg(format!("--include={packages}"));
    command.arg(SUITE).arg(root).arg(mirror);
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = Owned::new(command.spawn().doing(|| "starting mmdebstrap".into())?);
    let mut said = String::new();
    if let Some(stderr) = child.child().stderr.take() {
        for line in BufReader::new(stderr)
            .lines()
            .map_while(std::result::Result::ok)
        {
            if let Some(what) = line.strip_prefix("I: ") {
                note(what);
            }
            said.push_str(&line);
            said.push('\n');
        }
    }
    fs::write(log, said).doing(|| format!("writing {}", log.display()))?;
    let status = child.wait();
    if status.success() {
        return Ok(());
    }
    Err(Error::Program {
        command: shown,
        status: status.to_string(),
        tail: tail_of(log, 15),
    })
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
