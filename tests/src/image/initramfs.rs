//! The initial file systems of L1 and L2, made from the tree, and the folder with L2's kernel beside its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::cpio::Cpio;
use super::kernel::Kernel;
use super::key::Key;
use super::modules::{self, Modules};
use super::packaged::Packaged;
use super::{Tree, built, lines, vmlinux};
use crate::checks;
use crate::error::{Doing, Error, Result};

const L1_INIT: &str = include_str!("../../../resources/lab/l1-init");
const L1_ROOT: &str = include_str!("../../../resources/lab/l1-root");
const L1_MODULES: &str = include_str!("../../../resources/lab/l1.modules");
const L2_INIT: &str = include_str!("../../../resources/lab/l2-init");
const L2_CARD: &str = include_str!("../../../resources/lab/l2-card");
const L2_DHCP: &str = include_str!("../../../resources/lab/l2-dhcp");
const L2_LEASE: &str = include_str!("../../../resources/lab/l2-lease");
const L2_SETTLE: &str = include_str!("../../../resources/lab/l2-settle");
const L2_MODULES: &str = include_str!("../../../resources/lab/l2.modules");
const L2_TOOLS: &str = include_str!("../../../resources/lab/l2.tools");
/// The program that drives hardware without a driver: these are all of its sources.
const GUEST_PROGRAM: [&str; 13] = [
    include_str!("../../guest/Cargo.toml"),
    include_str!("../../guest/src/main.rs"),
    include_str!("../../guest/src/edu/mod.rs"),
    include_str!("../../guest/src/edu/dma.rs"),
    include_str!("../../guest/src/edu/interrupts.rs"),
    include_str!("../../guest/src/function.rs"),
    include_str!("../../guest/src/mapping.rs"),
    include_str!("../../guest/src/message.rs"),
    include_str!("../../guest/src/page.rs"),
    include_str!("../../guest/src/picture.rs"),
    include_str!("../../guest/src/random.rs"),
    include_str!("../../guest/src/storm.rs"),
    include_str!("../../guest/src/xhci.rs"),
];
/// mdev: load the driver of whatever shows up. Device nodes are devtmpfs's alone (`!`): mdev works through its events some time later,
/// so for a disk that went it would remove the node of one that has come by the same name since.
const MDEV: &str = "$MODALIAS=.* 0:0 660 ! @modprobe -qb \"$MODALIAS\"\n.* 0:0 660 !\n";

/// The init is a shell script, which nobody can ask to power off: these do it themselves.
const ENDINGS: [(&str, &str); 3] = [
    (
        "usr/sbin/poweroff",
        "#!/bin/sh\nsync; exec busybox poweroff -f\n",
    ),
    (
        "usr/sbin/halt",
        "#!/bin/sh\nsync; exec busybox poweroff -f\n",
    ),
    (
        "usr/sbin/reboot",
        "#!/bin/sh\nsync; exec busybox reboot -f\n",
    ),
];

/// What `build` takes at its largest: the kernels, the archives, and modules that are unpacked for them.
pub(super) const BUILD_MIB: u64 = 384;

/// The key of what `build` makes: the tree, everything that is put in, and how.
pub(super) fn key(tree: &Tree) -> Key {
    let recipe = [
        include_str!("initramfs.rs"),
        include_str!("modules.rs"),
        include_str!("cpio.rs"),
        include_str!("packaged.rs"),
        include_str!("vmlinux.rs"),
    ];
    let inputs = [
        L1_INIT, L1_ROOT, L1_MODULES, L2_INIT, L2_CARD, L2_DHCP, L2_LEASE, L2_SETTLE, L2_MODULES,
        L2_TOOLS,
    ];
    let key = recipe
        .iter()
        .chain(&inputs)
        .chain(&GUEST_PROGRAM)
        .fold(Key::new(), |key, input| key.with(input));
    key.with(tree.key())
}

/// Makes everything of an image but the tree.
pub(super) fn build(tree: &Tree, dir: &Path) -> Result<()> {
    let modules = Modules::of(&tree.root())?;
    let scratch = dir.join("scratch");
    let l2 = dir.join("l2");
    fs::create_dir_all(&l2).doing(|| format!("making {}", l2.display()))?;
    let kernel = tree
        .root()
        .join(format!("boot/vmlinuz-{}", modules.release()));
    copy(&kernel, &l2.join("vmlinuz"))?;
    vmlinux::extract(tree, &kernel, &l2.join("vmlinux"))?;

    let mut l1 = host(tree)?;
    modules.put(tree, lines(L1_MODULES), &scratch, &mut l1)?;
    write(&dir.join("l1-initrd"), &l1.finish())?;

    // For L1, which is what it aims devices at.
    copy(&checks::build_guest_program()?, &l2.join("lab-guest"))?;
    let mut guest = guest(tree)?;
    modules.put(tree, lines(L2_MODULES), &scratch, &mut guest)?;
    write(&l2.join("initrd"), &guest.finish())
}

/// Makes L1's initial file system for a kernel of Debian's other than the tree's.
pub(super) fn build_host(kernel: &Packaged, tree: &Tree, to: &Path) -> Result<()> {
    let mut l1 = host(tree)?;
    put_known(
        kernel,
        tree,
        L1_MODULES,
        &to.with_extension("scratch"),
        &mut l1,
    )?;
    let unfinished = to.with_extension("unfinished");
    write(&unfinished, &l1.finish())?;
    fs::rename(&unfinished, to).doing(|| format!("renaming to {}", to.display()))
}

/// Makes the folder of a guest with a kernel of Debian's other than the tree's.
pub(super) fn build_guest(kernel: &Packaged, tree: &Tree, to: &Path) -> Result<()> {
    built(to, BUILD_MIB, |dir| {
        copy(&kernel.image(), &dir.join("vmlinuz"))?;
        let mut guest = guest(tree)?;
        put_known(kernel, tree, L2_MODULES, &dir.join("scratch"), &mut guest)?;
        write(&dir.join("initrd"), &guest.finish())
    })
}

/// Puts those of the listed modules into an archive that the kernel has: a driver may be of another release, or may have become
/// a part of another one.
fn put_known(
    kernel: &Packaged,
    tree: &Tree,
    list: &str,
    scratch: &Path,
    cpio: &mut Cpio,
) -> Result<()> {
    let modules = kernel.modules()?;
    let known = lines(list).filter(|want| modules.has(want));
    modules.put(tree, known, scratch, cpio)
}

/// L1's initial file system without modules.
fn host(tree: &Tree) -> Result<Cpio> {
    let mut l1 = base(tree)?;
    for folder in ["root", "lower", "layer"] {
        l1.folder(folder);
    }
    l1.file("init", 0o755, L1_INIT.as_bytes());
    l1.file("l1-root", 0o755, L1_ROOT.as_bytes());
    Ok(l1)
}

/// A guest's initial file system without modules.
fn guest(tree: &Tree) -> Result<Cpio> {
    let mut guest = base(tree)?;
    for (path, script) in [
        ("init", L2_INIT),
        ("bin/lab-card", L2_CARD),
        ("bin/lab-dhcp", L2_DHCP),
        ("bin/lab-lease", L2_LEASE),
        ("bin/lab-settle", L2_SETTLE),
    ] {
        guest.file(path, 0o755, script.as_bytes());
    }
    for (path, script) in ENDINGS {
        guest.file(path, 0o755, script.as_bytes());
    }
    let program = checks::build_guest_program()?;
    guest.file("bin/lab-guest", 0o755, &read(&program)?);
    guest.file("etc/mdev.conf", 0o644, MDEV.as_bytes());
    put_tools(tree, &mut guest)?;
    Ok(guest)
}

/// Makes L1's initial file system for a kernel that has its modules in itself: the stock one, and what modprobe reads to know
/// them, so that asking for one of them succeeds.
pub(super) fn build_for(kernel: &Kernel, tree: &Tree, stock: &Path, to: &Path) -> Result<()> {
    let release = kernel.release()?;
    let scratch = to.with_extension("scratch");
    let modules = scratch.join(format!("lib/modules/{release}"));
    fs::create_dir_all(&modules).doing(|| format!("making {}", modules.display()))?;
    for name in ["modules.builtin", "modules.builtin.modinfo"] {
        write(&modules.join(name), &kernel.file(name)?)?;
    }
    write(&modules.join("modules.order"), &[])?;
    let mut added = Cpio::default();
    modules::put_indexes(tree, &scratch, &release, &mut added)?;
    fs::remove_dir_all(&scratch).doing(|| format!("removing {}", scratch.display()))?;
    // The kernel unpacks archives one after the other; each ends at a multiple of four, where the next may begin.
    let whole = [read(stock)?, added.finish()].concat();
    let unfinished = to.with_extension("unfinished");
    write(&unfinished, &whole)?;
    fs::rename(&unfinished, to).doing(|| format!("renaming to {}", to.display()))
}

/// Busybox under all its names, and the folders that an init mounts on.
fn base(tree: &Tree) -> Result<Cpio> {
    let mut cpio = Cpio::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "etc", "mnt"] {
        cpio.folder(folder);
    }
    cpio.character_device("dev/console", 5, 1);
    cpio.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    cpio.file("etc/group", 0o644, b"root:x:0:\n");
    let busybox = tree.root().join("usr/bin/busybox");
    cpio.file("bin/busybox", 0o755, &read(&busybox)?);
    for applet in applets(&busybox)? {
        cpio.symlink(&format!("bin/{applet}"), "busybox");
    }
    // The kernel calls it by this name.
    cpio.symlink("sbin/modprobe", "/bin/busybox");
    Ok(cpio)
}

/// Static, so it runs here without the tree's loader.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let mut command = std::process::Command::new(busybox);
    let output = command
        .arg("--list")
        .output()
        .doing(|| format!("{} --list", busybox.display()))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect())
}

/// The listed programs with the libraries they load, where their loader looks for them.
fn put_tools(tree: &Tree, cpio: &mut Cpio) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for tool in lines(L2_TOOLS) {
        let path = tree.root().join(tool.trim_start_matches('/'));
        cpio.file(tool.trim_start_matches('/'), 0o755, &read(&path)?);
        libraries.extend(libraries_of(tree, tool)?);
    }
    let loader = "lib64/ld-linux-x86-64.so.2";
    cpio.file(loader, 0o755, &read(&tree.root().join(loader))?);
    for library in libraries {
        let name = library.rsplit('/').next().unwrap_or(&library).to_owned();
        let content = read(Path::new(&library))?;
        cpio.file(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o644, &content);
    }
    let names = "usr/share/misc/pci.ids";
    cpio.file(names, 0o644, &read(&tree.root().join(names))?);
    Ok(())
}

/// Asks the tree's loader, as ldd(1) does: lines of "libz.so.1 => /path/libz.so.1 (0x...)".
fn libraries_of(tree: &Tree, tool: &str) -> Result<Vec<String>> {
    let mut command = std::process::Command::new(tree.root().join("lib64/ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(tree.root().join("usr/lib/x86_64-linux-gnu"));
    command
        .arg("--list")
        .arg(tree.root().join(tool.trim_start_matches('/')));
    let output = command
        .output()
        .doing(|| format!("listing the libraries of {tool}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || text.contains("not found") {
        return Err(Error::Unexpected(format!(
            "{tool} lacks a library in the tree:\n{text}"
        )));
    }
    let paths = text
        .lines()
        .filter_map(|line| line.split_once("=> ")?.1.split(' ').next());
    Ok(paths.map(str::to_owned).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).doing(|| format!("reading {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).doing(|| format!("writing {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .doing(|| format!("copying {}", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn files(dir: PathBuf) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| match path.is_dir() {
                true => files(path),
                false => vec![path],
            })
            .collect()
    }

    #[test]
    fn every_source_of_the_guests_program_is_an_input_of_the_image() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        let sources = files(dir);
        assert_eq!(sources.len(), GUEST_PROGRAM.len());
        for path in sources {
            let content = fs::read_to_string(&path).unwrap();
            assert!(
                GUEST_PROGRAM.contains(&content.as_str()),
                "{}",
                path.display()
            );
        }
    }
}
