//! Which package of which distribution has a kernel, or its modules.

use super::{report::Fix, system::System};

/// The package that has the modules of the running kernel.
pub(super) fn modules(system: &System, name: &str) -> Option<Fix> {
    let release = &system.release;
    let load = format!("modprobe {name}");
    let (how, command) = if system.is("debian") && release.contains("-cloud-") {
        // Debian's kernels for clouds are built without VFIO.
        let how = "start a kernel that has it: this one, for clouds, is built without";
        (how, "apt-get install -y linux-image-amd64 && reboot".into())
    } else if system.is("ubuntu") {
        let package = format!("linux-modules-extra-{release}");
        (
            "install it",
            format!("apt-get install -y --reinstall {package} && {load}"),
        )
    } else if system.is("debian") {
        let package = format!("linux-image-{release}");
        (
            "install it again",
            format!("apt-get install -y --reinstall {package} && {load}"),
        )
    } else if system.is("fedora") || system.is("rhel") {
        (
            "install it",
            format!("dnf install -y kernel-modules-{release} && {load}"),
        )
    } else if system.is("arch") {
        (
            "install the kernel again",
            "pacman -S --noconfirm linux && reboot".into(),
        )
    } else if system.is("suse") || system.is("opensuse") {
        (
            "install the kernel again",
            "zypper install -f -y kernel-default && reboot".into(),
        )
    } else {
        return None;
    };
    Some(Fix::root(how, command))
}

/// What installs the kernel that most people of the distribution run.
pub(super) fn usual_kernel(system: &System) -> Option<&'static str> {
    let of = [
        ("ubuntu", "apt-get install -y linux-generic"),
        ("debian", "apt-get install -y linux-image-amd64"),
        ("fedora", "dnf install -y kernel"),
        ("rhel", "dnf install -y kernel"),
        ("arch", "pacman -S --noconfirm linux"),
        ("suse", "zypper install -y kernel-default"),
        ("alpine", "apk add linux-lts"),
    ];
    let found = of
        .into_iter()
        .find(|(distribution, _)| system.is(distribution));
    found.map(|(_, command)| command)
}
