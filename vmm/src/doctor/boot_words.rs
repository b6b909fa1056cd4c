//! How the kernel is told another word at its start: each distribution, or boot loader, has its own command for it.

use super::{files::Files, report::Fix, system::System};

/// What keeps the kernel's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loader {
    /// Systems of images: Silverblue, CoreOS.
    Ostree,
    Nixos,
    /// Pop!_OS.
    Kernelstub,
    /// Fedora, RHEL and theirs.
    Grubby,
    /// Proxmox VE, where it does not boot by GRUB.
    Proxmox,
    /// Debian, Ubuntu and theirs: their grub-mkconfig reads /etc/default/grub.d as well.
    DebianGrub,
    /// GRUB without a command of the distribution's: that which makes its configuration, and where it goes.
    Grub(&'static str, &'static str),
    /// systemd's kernel-install, for systemd-boot and unified kernel images.
    KernelInstall,
    /// Entries of the boot loader specification, kept by hand: Arch with systemd-boot.
    Entries(&'static str),
    /// Alpine.
    Extlinux,
    /// None that is known here.
    Unknown,
}

/// Words for the kernel, and those that must go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) add: Vec<&'static str>,
    pub(super) remove: Vec<&'static str>,
}

impl Loader {
    /// What this machine boots by, as far as its files tell.
    pub(super) fn find(files: &Files, system: &System) -> Self {
        let program = |name: &str| {
            let dirs = ["usr/sbin", "usr/bin", "sbin", "bin"];
            dirs.iter()
                .any(|dir| files.exists(&format!("{dir}/{name}")))
        };
        let entries = [
            "boot/loader/entries",
            "efi/loader/entries",
            "boot/efi/loader/entries",
        ];
        let entries = entries.into_iter().find(|dir| !files.names(dir).is_empty());
        let grub = files.exists("etc/default/grub");
        match entries {
            _ if files.exists("run/ostree-booted") => Self::Ostree,
            _ if system.is("nixos") => Self::Nixos,
            _ if program("kernelstub") => Self::Kernelstub,
            _ if program("grubby") => Self::Grubby,
            _ if files.exists("etc/kernel/proxmox-boot-uuids") => Self::Proxmox,
            _ if grub && program("update-grub") => Self::DebianGrub,
            _ if grub && program("grub2-mkconfig") => {
                Self::Grub("grub2-mkconfig", "/boot/grub2/grub.cfg")
            }
            _ if grub && program("grub-mkconfig") => {
                Self::Grub("grub-mkconfig", "/boot/grub/grub.cfg")
            }
            _ if files.exists("etc/kernel/cmdline") && program("kernel-install") => {
                Self::KernelInstall
            }
            Some(dir) => Self::Entries(dir),
            None if files.exists("etc/update-extlinux.conf") => Self::Extlinux,
            None => Self::Unknown,
        }
    }

    /// How to make the change.
    pub(super) fn fix(self, change: &Change) -> Fix {
        let how = change.said();
        if self == Self::Nixos {
            let words = change.add.iter().map(|word| format!(" \"{word}\""));
            let words: String = words.collect();
            let how =
                format!("{how}: in /etc/nixos/configuration.nix, boot.kernelParams = [{words} ]");
            return Fix::root(how, "nixos-rebuild boot && reboot");
        }
        match self.commands(change) {
            Some(command) => Fix::root(how, format!("{command} && reboot")),
            None => Fix::by_hand(format!(
                "{how}: on the kernel's command line, which this machine's boot loader keeps"
            )),
        }
    }

    fn commands(self, change: &Change) -> Option<String> {
        let add = change.add.join(" ");
        let option = |add_by: &str, remove_by: &str| {
            let added = change.add.iter().map(|word| format!(" {add_by}{word}"));
            let removed = change
                .remove
                .iter()
                .map(|word| format!(" {remove_by}{word}"));
            added.chain(removed).collect::<String>()
        };
        Some(match self {
            Self::Ostree => {
                let options = option("--append-if-missing=", "--delete-if-present=");
                format!("rpm-ostree kargs{options}")
            }
            Self::Kernelstub => format!("kernelstub{}", option("--add-options=", "--delete-options=")),
            Self::Grubby => {
                format!("grubby --update-kernel=ALL{}", option("--args=", "--remove-args="))
            }
            Self::DebianGrub => change.in_files("/etc/default/grub /etc/default/grub.d", |_| {
                // A file of ours, after those of others and with what they say.
                format!(
                    "mkdir -p /etc/default/grub.d && \
                     echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {add}\"' >> /etc/default/grub.d/viaduct.cfg"
                )
            }) + " && update-grub",
            Self::Grub(program, configuration) => {
                let edit = change.in_files("/etc/default/grub", |file| {
                    format!("sed -i -E 's/^GRUB_CMDLINE_LINUX=([\"'\\'']?)/&{add} /' {file}")
                });
                format!("{edit} && {program} -o {configuration}")
            }
            Self::Proxmox => {
                change.in_files("/etc/kernel/cmdline", at_the_end(&add)) + " && proxmox-boot-tool refresh"
            }
            Self::KernelInstall => {
                change.in_files("/etc/kernel/cmdline", at_the_end(&add)) + " && kernel-install add-all"
            }
            Self::Entries(dir) => change.in_files(&format!("/{dir}/*.conf"), |files| {
                format!("sed -i '/^options/s/$/ {add}/' {files}")
            }),
            Self::Extlinux => {
                change.in_files("/etc/update-extlinux.conf", |file| {
                    format!("sed -i 's/^default_kernel_opts=\"/&{add} /' {file}")
                }) + " && update-extlinux"
            }
            Self::Nixos | Self::Unknown => return None,
        })
    }
}

fn at_the_end(words: &str) -> impl Fn(&str) -> String {
    move |file| format!("sed -i 's/$/ {words}/' {file}")
}

impl Change {
    fn said(&self) -> String {
        match (&self.add[..], &self.remove[..]) {
            (add, []) => format!("boot with {}", add.join(" ")),
            ([], remove) => format!("boot without {}", remove.join(" ")),
            (add, remove) => format!("boot with {}, without {}", add.join(" "), remove.join(" ")),
        }
    }

    /// The commands that take words out of `files` and then, if there are any to add, add them by `adding`.
    fn in_files(&self, files: &str, adding: impl Fn(&str) -> String) -> String {
        let removing = self.remove.iter().map(|word| {
            // Only of the files that have it: of none that is not there.
            format!("sed -i 's/ *\\b{word}\\b//g' $(grep -rlw {word} {files})")
        });
        let adding = (!self.add.is_empty()).then(|| adding(files));
        let commands: Vec<String> = removing.chain(adding).collect();
        commands.join(" && ")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::super::recorded::Recorded;
    use super::*;

    fn change() -> Change {
        Change {
            add: vec!["intel_iommu=on"],
            remove: vec!["intremap=off"],
        }
    }

    fn loader(machine: &Recorded) -> Loader {
        let files = machine.files();
        Loader::find(&files, &System::read(&files))
    }

    /// Types the commands in the recorded machine, as far as they are about files: those of the boot loader do nothing.
    fn typed(machine: &Recorded, loader: Loader) {
        let command = loader.commands(&change()).unwrap();
        let root = machine.path("");
        let root = root.display().to_string();
        let root = root.trim_end_matches('/');
        let command = command.replace(" /etc/", &format!(" {root}/etc/"));
        let command = command.replace(" /boot/", &format!(" {root}/boot/"));
        let none = "update-grub() { :; }; grub-mkconfig() { :; }; grub2-mkconfig() { :; }; update-extlinux() { :; };";
        let script = none.replace('-', "_");
        let command = command
            .replace("update-", "update_")
            .replace("-mkconfig", "_mkconfig");
        let script = format!("{script} {command}");
        let status = Command::new("bash").arg("-c").arg(&script).status();
        assert!(status.unwrap().success(), "{script}");
    }

    #[test]
    fn each_distribution_is_known_by_its_files_and_has_a_command() {
        let machine = Recorded::new();
        assert_eq!(loader(&machine), Loader::Unknown);
        assert_eq!(Loader::Unknown.fix(&change()).command, None);
        machine.file("etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
        machine.file("usr/sbin/grub-mkconfig", "");
        assert_eq!(
            loader(&machine),
            Loader::Grub("grub-mkconfig", "/boot/grub/grub.cfg")
        );
        machine.file("usr/sbin/update-grub", "");
        assert_eq!(loader(&machine), Loader::DebianGrub);
        machine.file("usr/sbin/grubby", "");
        let command = Loader::Grubby.fix(&change()).command.unwrap();
        assert_eq!(
            command,
            "grubby --update-kernel=ALL --args=intel_iommu=on --remove-args=intremap=off && reboot"
        );
        assert_eq!(loader(&machine), Loader::Grubby);
        machine.file("etc/os-release", "ID=nixos\n");
        assert_eq!(loader(&machine), Loader::Nixos);
        let fix = Loader::Nixos.fix(&change());
        assert!(
            fix.how
                .ends_with("boot.kernelParams = [ \"intel_iommu=on\" ]")
        );
        machine.file("run/ostree-booted", "");
        assert_eq!(loader(&machine), Loader::Ostree);
    }

    #[test]
    fn what_is_typed_changes_the_words_in_debians_files_and_no_others() {
        let machine = Recorded::new();
        let grub = "GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX=\"quiet intremap=off x=1\"\n";
        machine.file("etc/default/grub", grub);
        typed(&machine, Loader::DebianGrub);
        let grub = fs::read_to_string(machine.path("etc/default/grub")).unwrap();
        assert_eq!(grub, "GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX=\"quiet x=1\"\n");
        let ours = fs::read_to_string(machine.path("etc/default/grub.d/viaduct.cfg")).unwrap();
        assert_eq!(
            ours,
            "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX intel_iommu=on\"\n"
        );
    }

    #[test]
    fn what_is_typed_changes_the_words_of_other_loaders() {
        let machine = Recorded::new();
        machine.file(
            "etc/default/grub",
            "GRUB_CMDLINE_LINUX=\"intremap=off quiet\"\n",
        );
        machine.file("etc/kernel/cmdline", "root=/dev/sda intremap=off\n");
        machine.file(
            "boot/loader/entries/a.conf",
            "title x\noptions root=/dev/sda intremap=off\n",
        );
        for (loader, file, text) in [
            (
                Loader::Grub("grub2-mkconfig", "/boot/grub2/grub.cfg"),
                "etc/default/grub",
                "GRUB_CMDLINE_LINUX=\"intel_iommu=on  quiet\"\n",
            ),
            (
                Loader::Entries("boot/loader/entries"),
                "boot/loader/entries/a.conf",
                "title x\noptions root=/dev/sda intel_iommu=on\n",
            ),
        ] {
            typed(&machine, loader);
            assert_eq!(fs::read_to_string(machine.path(file)).unwrap(), text);
        }
    }
}
