//! For tests: a machine in a temporary directory whose kernel binds and unbinds as the real one does, and can stop at any step.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::mpsc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use devices::pci::Bdf;
use tempfile::TempDir;

use super::{
    Host, Roots,
    attributes::{Answer, Attributes, Request},
    changes::{Changes, Running},
    is_vfio, sysfs,
};

/// A function of the machine, to be placed with [`Fixture::add`].
pub(super) struct Function {
    pub(super) bdf: Bdf,
    pub(super) driver: Option<&'static str>,
    pub(super) group: Option<u32>,
    pub(super) class: u32,
    pub(super) header_type: u8,
}

/// A network card's function on igbvf, in group 8.
pub(super) fn function(name: &str) -> Function {
    Function {
        bdf: bdf(name),
        driver: Some("igbvf"),
        group: Some(8),
        class: 0x02_0000,
        header_type: 0,
    }
}

pub(super) fn bdf(name: &str) -> Bdf {
    name.parse().unwrap()
}

/// The machine.
pub(super) struct Fixture {
    dir: TempDir,
    pub(super) kernel: Arc<FakeKernel>,
}

impl Fixture {
    /// A machine with an IOMMU, vfio-pci, and this process; no devices.
    pub(super) fn new() -> Self {
        // In memory where that is possible: the journal's fsyncs would be most of the tests' time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        let kernel = Arc::new(FakeKernel::new(dir.path().join("sys")));
        let fixture = Self { dir, kernel };
        fixture.file("sys/class/iommu/dmar0/uevent", "");
        fixture.file("sys/class/net/lo/address", "00:00:00:00:00:00\n");
        fixture.driver("vfio-pci");
        fixture.process(std::process::id(), "viaduct");
        fs::create_dir_all(fixture.path("run")).unwrap();
        fixture
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A link, to `target` word for word.
    pub(super) fn link(&self, path: &str, target: impl AsRef<Path>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A driver in the kernel.
    pub(super) fn driver(&self, name: &str) {
        fs::create_dir_all(self.path(&format!("sys/bus/pci/drivers/{name}"))).unwrap();
    }

    /// A running process.
    pub(super) fn process(&self, pid: u32, command: &str) {
        // Fields 3 to 22; started at tick 4711.
        let stat = format!("{pid} ({command} :) x) S 1{} 4711 0\n", " 0".repeat(17));
        self.file(&format!("proc/{pid}/stat"), stat);
        self.file(&format!("proc/{pid}/comm"), format!("{command}\n"));
    }

    pub(super) fn end_process(&self, pid: u32) {
        fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
    }

    /// `pid` opens `file`, a path below /dev.
    pub(super) fn open(&self, pid: u32, file: &str) {
        self.file(&format!("dev/{file}"), "");
        self.link(&format!("proc/{pid}/fd/9"), self.path("dev").join(file));
    }

    pub(super) fn add(&self, function: Function) -> Bdf {
        let Function { bdf, .. } = function;
        let dir = format!("sys/bus/pci/devices/{bdf}");
        let class = function.class;
        for (name, text) in [
            ("vendor", "0x8086".into()),
            ("device", "0x10ca".into()),
            ("subsystem_vendor", "0x8086".into()),
            ("subsystem_device", "0xa03c".into()),
            ("class", format!("{class:#08x}")),
            ("numa_node", "-1".into()),
            ("driver_override", "(null)".into()),
            ("natural", function.driver.unwrap_or("").into()),
        ] {
            self.file(&format!("{dir}/{name}"), format!("{text}\n"));
        }
        let mut config = [0; 64];
        config[0x0e] = function.header_type | 0x80;
        self.file(&format!("{dir}/config"), config);
        if let Some(driver) = function.driver {
            self.driver(driver);
            self.link(
                &format!("{dir}/driver"),
                format!("../../../../bus/pci/drivers/{driver}"),
            );
        }
        if let Some(group) = function.group {
            let groups = "kernel/iommu_groups";
            self.link(
                &format!("{dir}/iommu_group"),
                format!("../../../../{groups}/{group}"),
            );
            self.link(
                &format!("sys/{groups}/{group}/devices/{bdf}"),
                self.path(&dir),
            );
        }
        bdf
    }

    /// An interface on a function.
    pub(super) fn interface(&self, name: &str, bdf: Bdf) {
        let path = format!("pci0000:00/0000:00:01.0/{bdf}/net/{name}");
        self.file(
            &format!("sys/devices/{path}/address"),
            "52:54:00:01:02:03\n",
        );
        self.link(
            &format!("sys/class/net/{name}"),
            format!("../../devices/{path}"),
        );
    }

    /// Makes `functions` the virtual functions of `physical`, of which there can be `total`.
    pub(super) fn virtual_functions(&self, physical: Bdf, functions: &[Bdf], total: u32) {
        let dir = format!("sys/bus/pci/devices/{physical}");
        self.file(&format!("{dir}/sriov_totalvfs"), format!("{total}\n"));
        for (index, function) in functions.iter().enumerate() {
            self.link(&format!("{dir}/virtfn{index}"), format!("../{function}"));
            let physfn = format!("sys/bus/pci/devices/{function}/physfn");
            self.link(&physfn, format!("../{physical}"));
        }
    }

    pub(super) fn host(&self) -> Host {
        let roots = Roots {
            sys: self.path("sys"),
            dev: self.path("dev"),
            proc: self.path("proc"),
            lib: self.path("lib"),
            run: self.path("run"),
        };
        Host::with_changes(roots, self.kernel.clone())
    }

    /// The host, as a process sees it that waits for nothing long.
    pub(super) fn hurried_host(&self) -> Host {
        let mut host = self.host();
        host.patience = Duration::from_millis(100);
        host
    }

    /// Somebody gives the device to `driver` by hand, reserving it or not.
    pub(super) fn hand_over(&self, device: Bdf, driver: &str, reserve: bool) {
        self.driver(driver);
        let dir = format!("sys/bus/pci/devices/{device}");
        let _had_none = fs::remove_file(self.path(&format!("{dir}/driver")));
        self.link(
            &format!("{dir}/driver"),
            format!("../../../../bus/pci/drivers/{driver}"),
        );
        if reserve {
            self.file(&format!("{dir}/driver_override"), format!("{driver}\n"));
        }
    }

    pub(super) fn driver_of(&self, bdf: Bdf) -> Option<String> {
        self.host().driver_of(bdf)
    }

    /// Driver and reservation of each, and what the journal says: all that binding may change.
    pub(super) fn state(&self, devices: &[Bdf]) -> Vec<(Option<String>, Option<String>)> {
        let host = self.host();
        let state = |&device| {
            (
                host.driver_of(device),
                host.driver_override(device).unwrap(),
            )
        };
        devices.iter().map(state).collect()
    }
}

/// A kernel that does to the directories what Linux does behind them.
pub(super) struct FakeKernel {
    sys: PathBuf,
    done: AtomicUsize,
    /// The process dies at this operation …
    dies_at: AtomicUsize,
    /// … before it is done, or after.
    dies_after: AtomicBool,
    /// Taking a device from a driver sleeps for ever.
    pub(super) sleeps: AtomicBool,
    /// vfio-pci refuses every device.
    pub(super) refuses: AtomicBool,
    /// The driver of physical functions makes no more than these.
    pub(super) most_functions: AtomicU32,
    /// Drivers of its kind do.
    pub(super) refuses_variants: AtomicBool,
}

impl FakeKernel {
    fn new(sys: PathBuf) -> Self {
        Self {
            sys,
            done: AtomicUsize::new(0),
            dies_at: AtomicUsize::new(usize::MAX),
            dies_after: AtomicBool::new(false),
            sleeps: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            most_functions: AtomicU32::new(u32::MAX),
            refuses_variants: AtomicBool::new(false),
        }
    }

    /// From here on, the process gets as far as operation `at`, and with `after` beyond it.
    pub(super) fn die_at(&self, at: usize, after: bool) {
        self.done.store(0, Ordering::SeqCst);
        self.dies_at.store(at, Ordering::SeqCst);
        self.dies_after.store(after, Ordering::SeqCst);
    }

    /// A new process: nothing stops it. Whether the last one died.
    pub(super) fn revive(&self) -> bool {
        let died = self.done.load(Ordering::SeqCst) > self.dies_at.load(Ordering::SeqCst);
        self.die_at(usize::MAX, false);
        died
    }

    fn step<T>(&self, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let dead = || io::Error::other("the process is dead");
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        let dies_at = self.dies_at.load(Ordering::SeqCst);
        if number < dies_at {
            return operation();
        }
        if number == dies_at && self.dies_after.load(Ordering::SeqCst) {
            let _nobody_learns_of_it = operation();
        }
        Err(dead())
    }

    fn device(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(name)
    }

    /// Whether the driver core would offer `device` to `driver`: if it is reserved, to that one only.
    fn matches(&self, device: &str, driver: &str) -> bool {
        let dir = self.device(device);
        let reserved = sysfs::text(&dir.join("driver_override")).unwrap_or_default();
        match &*reserved {
            "(null)" => sysfs::text(&dir.join("natural")).as_deref() == Some(driver),
            reserved => reserved == driver,
        }
    }

    fn attach(&self, device: &str, driver: &str) -> io::Result<()> {
        self.take_lock();
        let link = self.device(device).join("driver");
        if link.exists() || !self.matches(device, driver) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let refuses = match driver {
            "vfio-pci" => &self.refuses,
            driver if is_vfio(driver) => &self.refuses_variants,
            _ => &AtomicBool::new(false),
        };
        if refuses.load(Ordering::SeqCst) {
            return Ok(());
        }
        symlink(self.sys.join("bus/pci/drivers").join(driver), link)
    }

    /// Makes or removes virtual functions 03:10.1, 03:10.3, …, which igbvf takes.
    fn set_number(&self, physical: &str, number: u32) -> io::Result<()> {
        let link = |index: u32| self.device(physical).join(format!("virtfn{index}"));
        let name = |index: u32| format!("0000:03:{:02x}.{}", 0x10 + index / 4, index % 4 * 2 + 1);
        if number > 0 && link(0).exists() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        for index in (0..).take_while(|&index| number == 0 && link(index).exists()) {
            fs::remove_file(link(index))?;
            fs::remove_dir_all(self.device(&name(index)))?;
        }
        let probes = sysfs::number(&self.device(physical).join("sriov_drivers_autoprobe"));
        for index in 0..number.min(self.most_functions.load(Ordering::SeqCst)) {
            let dir = self.device(&name(index));
            fs::create_dir_all(&dir)?;
            for (attribute, text) in [
                ("vendor", "0x8086"),
                ("device", "0x10ca"),
                ("class", "0x020000"),
                ("driver_override", "(null)"),
                ("natural", "igbvf"),
            ] {
                fs::write(dir.join(attribute), text)?;
            }
            symlink(self.device(physical), dir.join("physfn"))?;
            symlink(&dir, link(index))?;
            if probes != Some(0) {
                self.attach(&name(index), "igbvf")?;
            }
        }
        Ok(())
    }

    fn unbind(&self, device: &str, driver: &str) -> io::Result<()> {
        let link = self.device(device).join("driver");
        if sysfs::link_name(&link).as_deref() != Some(driver) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // The link goes before the driver is asked to let go.
        fs::remove_file(link)?;
        self.take_lock();
        Ok(())
    }

    /// The device's lock, which a driver that does not let go keeps.
    fn take_lock(&self) {
        while self.sleeps.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process that the kernel can put to sleep.
struct Process(Arc<FakeKernel>);

impl Attributes for Process {
    fn access(&mut self, request: Request, patience: Duration) -> Answer {
        let (done, waiting) = mpsc::sync_channel(1);
        let kernel = self.0.clone();
        thread::spawn(move || {
            let Request { attribute, text } = request;
            let came = match text {
                Some(text) => kernel.write(&attribute, &text).map(|()| String::new()),
                None => fs::read_to_string(&attribute),
            };
            let _nobody_may_wait_any_more = done.send(came);
        });
        let pid = std::process::id();
        waiting
            .recv_timeout(patience)
            .map_or(Answer::Sleeps { pid }, Answer::Came)
    }
}

impl FakeKernel {
    fn write(&self, attribute: &Path, text: &str) -> io::Result<()> {
        let path = attribute.strip_prefix(self.sys.join("bus/pci")).unwrap();
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        self.step(|| match parts[..] {
            ["devices", _, "driver_override"] => {
                let text = if text == "\n" { "(null)\n" } else { text };
                fs::write(attribute, text)
            }
            ["drivers", driver, "unbind"] => self.unbind(text, driver),
            ["drivers", driver, "bind"] => self.attach(text, driver),
            ["devices", _, "sriov_drivers_autoprobe"] => fs::write(attribute, text),
            ["devices", physical, "sriov_numvfs"] => {
                let number = text.parse().map_err(io::Error::other)?;
                self.set_number(physical, number)
            }
            ["drivers_probe"] => {
                let drivers = sysfs::names(&self.sys.join("bus/pci/drivers"));
                let found = drivers.iter().find(|driver| self.matches(text, driver));
                found.map_or(Ok(()), |driver| self.attach(text, driver))
            }
            _ => panic!("no such attribute: {}", attribute.display()),
        })
    }
}

impl Changes for FakeKernel {
    fn attributes(self: Arc<Self>, _: Option<&File>) -> io::Result<Box<dyn Attributes>> {
        Ok(Box::new(Process(self)))
    }

    fn load_for(&self, modalias: &str) -> io::Result<()> {
        Err(io::Error::other(format!("Module {modalias} not found.")))
    }

    fn replace(&self, file: &Path, contents: &[u8]) -> io::Result<()> {
        self.step(|| Running::recorded().replace(file, contents))
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        // The modules on this machine's disk.
        if let Some(driver) = sysfs::text(&self.sys.join("modules").join(name)) {
            // A file that says nothing has a driver of its own name.
            let driver = if driver.is_empty() { name } else { &driver };
            return fs::create_dir_all(self.sys.join("bus/pci/drivers").join(driver));
        }
        Err(io::Error::other(format!("Module {name} not found.")))
    }
}
