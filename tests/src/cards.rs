//! The cards of the simulated host, as QEMU's command line says them. The machine's own devices have fixed, high slots on
//! pcie.0, so whatever is added takes the low ones and the example card stays at 03:00.

use std::path::{Path, PathBuf};

use crate::disks::Disk;

/// What is plugged into an L1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cards {
    arguments: Vec<String>,
    disks: Vec<&'static str>,
}

impl Cards {
    /// No card at all.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// The example card: an SR-IOV NIC with ports at 03:00.0 and 03:00.1. L1 gives the second two virtual functions,
    /// 03:10.1 and 03:10.3. Three root ports are there to make its bus the third.
    pub(crate) fn sriov() -> Self {
        Self::none().with(
            "-device pcie-root-port,id=rp1,chassis=1,addr=02.0 \
             -device pcie-root-port,id=rp2,chassis=2,addr=03.0 \
             -device pcie-root-port,id=rp3,chassis=3,addr=04.0 \
             -netdev user,id=n0 -netdev user,id=n1 \
             -device igb,bus=rp3,addr=0.0,multifunction=on,x-pcie-ari-nextfn-1=on,netdev=n0,mac=52:54:00:03:00:00 \
             -device igb,bus=rp3,addr=0.1,netdev=n1,mac=52:54:00:03:00:01",
        )
    }

    /// Two conventional PCI cards behind one bridge, and so in one IOMMU group with it: 05:01.0 and 05:02.0, on e1000.
    pub(crate) fn with_shared_group(self) -> Self {
        self.with(
            "-device pcie-root-port,id=rp4,chassis=4,addr=05.0 \
             -device pcie-pci-bridge,id=br0,bus=rp4 \
             -device e1000,bus=br0,addr=01.0 -device e1000,bus=br0,addr=02.0",
        )
    }

    /// A disk for a controller, which names it by `drive=NAME`. `Host::disk` knows what is on it.
    pub(crate) fn with_disk(mut self, name: &'static str) -> Self {
        self.disks.push(name);
        self
    }

    /// Adds QEMU arguments, separated by spaces.
    pub(crate) fn with(mut self, arguments: &str) -> Self {
        self.arguments
            .extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds QEMU arguments as they came from a command line.
    pub(crate) fn with_all(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }

    /// The arguments.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The disks, as they are in a run's folder.
    pub(crate) fn disks(&self, dir: &Path) -> Vec<Disk> {
        let named = |name: &&str| Disk::new(name, dir);
        self.disks.iter().map(named).collect()
    }
}

/// Which IOMMU a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Iommu {
    /// Intel's VT-d, which the kernel uses, with interrupt remapping.
    #[default]
    Intel,
    /// AMD-Vi, which the kernel uses, with interrupt remapping.
    Amd,
    /// Intel's, and a kernel that is told to leave it alone.
    Unused,
    /// No IOMMU.
    Absent,
}

/// Which kernel a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum HostKernel {
    /// Debian's, which users have.
    #[default]
    Stock,
    /// One built for the lab, with iommufd, VFIO's device cdevs and a mediated device.
    Iommufd,
    /// The one in the backports of the lab's Debian.
    Backports,
}

impl HostKernel {
    /// Which other kernel of Debian's it is, if it is one.
    pub(crate) fn debian(self) -> Option<DebianKernel> {
        match self {
            Self::Stock | Self::Iommufd => None,
            Self::Backports => Some(DebianKernel::Backports),
        }
    }
}

/// A kernel of Debian's besides the one that the lab's Debian has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DebianKernel {
    /// Debian bookworm's, 6.1.
    Bookworm,
    /// The one in the backports of the lab's Debian, newer than its own.
    Backports,
}

/// How the machine is set up besides its cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// What is plugged in.
    pub(crate) cards: Cards,
    /// Without one in use it is a host that `viaduct` must refuse to work on.
    pub(crate) iommu: Iommu,
    /// L1's memory.
    pub(crate) memory_mib: u32,
    /// How many processors L1 has.
    pub(crate) processors: u32,
    /// Further words of L1's kernel command line.
    pub(crate) kernel_words: &'static str,
    /// L1's kernel.
    pub(crate) kernel: HostKernel,
    /// The kernel of guests, unless it is the stock one.
    pub(crate) guest_kernel: Option<DebianKernel>,
    /// What `viaduct run` is told as --iommu-backend in every scenario on this host.
    pub(crate) backend: Option<&'static str>,
}

impl Machine {
    /// The host of most scenarios: the example card, and a group that two cards share.
    pub(crate) fn example() -> Self {
        Self::with_cards(Cards::sriov().with_shared_group())
    }

    /// A host with these cards.
    pub(crate) fn with_cards(cards: Cards) -> Self {
        Self {
            cards,
            iommu: Iommu::Intel,
            memory_mib: 4096,
            processors: 1,
            kernel_words: "",
            kernel: HostKernel::Stock,
            guest_kernel: None,
            backend: None,
        }
    }

    /// The same with this many processors, for what one alone cannot show.
    pub(crate) fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// The same with this much memory.
    pub(crate) fn memory_mib(mut self, size: u32) -> Self {
        self.memory_mib = size;
        self
    }

    /// The same whose kernel is also told this.
    pub(crate) fn kernel_words(mut self, words: &'static str) -> Self {
        self.kernel_words = words;
        self
    }

    /// The same with this kernel.
    pub(crate) fn kernel(mut self, kernel: HostKernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// The same whose guests have this kernel.
    pub(crate) fn guest_kernel(mut self, kernel: DebianKernel) -> Self {
        self.guest_kernel = Some(kernel);
        self
    }

    /// The same with the kernel that has iommufd, and guests whose devices are reached through it.
    pub(crate) fn through_iommufd(mut self) -> Self {
        self.backend = Some("iommufd");
        self.kernel(HostKernel::Iommufd)
    }

    /// The same with this IOMMU.
    pub(crate) fn iommu(mut self, iommu: Iommu) -> Self {
        self.iommu = iommu;
        self
    }
}

/// What a boot of L1 needs to find.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The run's folder.
    pub(crate) dir: PathBuf,
    /// Which boot of the lab's it is, and which attempt at it.
    boot: u32,
    attempt: u32,
}

impl Places {
    /// The places of one attempt at a boot.
    pub(crate) fn of(dir: &Path, boot: u32, attempt: u32) -> Self {
        let dir = dir.to_owned();
        Self { dir, boot, attempt }
    }

    /// Shared with L1, which sees it as /lab.
    pub(crate) fn share(&self) -> PathBuf {
        self.dir.join("share")
    }

    /// Where L1's first serial port is written to.
    pub(crate) fn serial_log(&self) -> PathBuf {
        self.dir.join(format!("l1-serial-{}.log", self.attempt))
    }

    /// What QEMU itself says.
    pub(crate) fn qemu_log(&self) -> PathBuf {
        self.dir.join(format!("l1-qemu-{}.log", self.attempt))
    }

    /// A socket of this boot's, in the abstract namespace: no file to clean up, and no limit on the length of paths.
    pub(crate) fn socket(&self, whose: &str) -> String {
        format!("viaduct-lab-{}-{}-{whose}", std::process::id(), self.boot)
    }
}
