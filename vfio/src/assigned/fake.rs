//! Stand-ins for the host's function and the machine's interrupts, for tests.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use devices::{
    interrupt::{IntxSource, IntxWire, MsiMessage, MsiSource, MsiVectors},
    mapping::HostMapping,
};

use crate::kernel::{
    Affected, Area, HostFunction, IrqIndex, IrqInfo, RegionIndex, RegionInfo, RegionKind,
};

/// What was done, in order, to a function and what is around it.
pub(super) type Log = Arc<Mutex<Vec<String>>>;

/// A function of the host's: regions of bytes, and a record of what was done to it.
#[derive(Default)]
pub(super) struct FakeHost {
    pub(super) regions: Vec<(RegionInfo, Mutex<Vec<u8>>)>,
    pub(super) cannot_reset: bool,
    /// How it is reset alone.
    pub(super) reset_methods: Vec<String>,
    /// What a reset of its bus hits.
    pub(super) scope: Vec<Affected>,
    /// A reset of its bus fails with this.
    pub(super) hot_reset_errno: Option<i32>,
    /// Pulled out: every call fails.
    pub(super) is_gone: AtomicBool,
    can_grow: bool,
    pub(super) has_pin: bool,
    /// The host's interrupt line is somebody else's.
    pub(super) pin_is_taken: AtomicBool,
    /// How many vectors it gives at most, where that is fewer than it says it has.
    pub(super) most_vectors: Mutex<Option<usize>>,
    enabled: Mutex<Option<Enabled>>,
    calls: Log,
}

/// What vfio-pci keeps of an enabled kind of interrupt.
struct Enabled {
    index: IrqIndex,
    room: usize,
    armed: BTreeSet<usize>,
}

impl FakeHost {
    pub(super) fn that_can_grow(mut self) -> Self {
        self.can_grow = true;
        self
    }

    /// A region with `bytes` in it, all of which is mappable if it says so.
    pub(super) fn with_region(mut self, index: u32, bytes: Vec<u8>, mappable: bool) -> Self {
        let len = bytes.len() as u64;
        let mut info = RegionInfo::nothing(RegionIndex(index));
        info.size = len;
        info.writable = true;
        info.mappable
            .extend(mappable.then_some(Area { offset: 0, len }));
        self.regions.push((info, Mutex::new(bytes)));
        self
    }

    /// A region that a driver added, of this kind.
    pub(super) fn with_specific_region(
        self,
        index: u32,
        (group, number): (u32, u32),
        bytes: Vec<u8>,
    ) -> Self {
        let mut host = self.with_region(index, bytes, false);
        if let Some((info, _)) = host.regions.last_mut() {
            info.kind = Some(RegionKind { group, number });
        }
        host
    }

    /// Where it writes down what was done to it.
    pub(super) fn log(&self) -> Log {
        self.calls.clone()
    }

    fn is_there(&self) -> io::Result<()> {
        match self.is_gone.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            false => Ok(()),
        }
    }

    /// Whether `vector` of `index` would reach its eventfd.
    pub(super) fn is_armed(&self, index: IrqIndex, vector: usize) -> bool {
        let enabled = lock(&self.enabled);
        let mut enabled = enabled.iter().filter(|enabled| enabled.index == index);
        enabled.any(|enabled| enabled.armed.contains(&vector))
    }

    /// As vfio-pci does it: one kind at a time, as many vectors as it is enabled with unless it can grow.
    fn set(&self, index: IrqIndex, start: usize, with_fd: &[bool]) -> io::Result<()> {
        let end = start + with_fd.len();
        let most = lock(&self.most_vectors).unwrap_or(usize::MAX);
        let mut enabled = lock(&self.enabled);
        let is_new = enabled.is_none();
        let now = enabled.get_or_insert(Enabled {
            index,
            room: end,
            armed: BTreeSet::new(),
        });
        let has_room = self.can_grow || end <= now.room;
        if now.index != index || !has_room || end > most {
            enabled.take_if(|_| is_new);
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (vector, &armed) in (start..).zip(with_fd) {
            now.armed.remove(&vector);
            now.armed.extend(armed.then_some(vector));
        }
        Ok(())
    }

    /// What was done since the last time, in order.
    pub(super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.calls))
    }

    /// The bytes of a region now.
    pub(super) fn bytes(&self, index: u32) -> MutexGuard<'_, Vec<u8>> {
        lock(self.find(index).unwrap())
    }

    fn find(&self, index: u32) -> io::Result<&Mutex<Vec<u8>>> {
        let mut regions = self.regions.iter();
        let found = regions.find(|(info, _)| info.index == RegionIndex(index));
        Ok(&found.ok_or(io::ErrorKind::NotFound)?.1)
    }

    fn called(&self, call: String) -> io::Result<()> {
        lock(&self.calls).push(call);
        Ok(())
    }
}

/// Mapped memory that is none.
struct FakeMapping(usize);

// SAFETY: a test's: nobody follows the address.
#[expect(unsafe_code, reason = "the trait asks for a promise")]
unsafe impl HostMapping for FakeMapping {
    fn address(&self) -> usize {
        0x7000_0000_0000
    }

    fn len(&self) -> usize {
        self.0
    }
}

impl HostFunction for FakeHost {
    fn region_count(&self) -> u32 {
        let indices = self.regions.iter().map(|(info, _)| info.index.0);
        indices.max().map_or(0, |highest| highest + 1)
    }

    fn region(&self, index: RegionIndex) -> io::Result<RegionInfo> {
        let mut regions = self.regions.iter();
        let found = regions.find(|(info, _)| info.index == index);
        Ok(found.map_or_else(|| RegionInfo::nothing(index), |(info, _)| info.clone()))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.is_there()?;
        let bytes = self.bytes(region.index.0);
        let at = usize::try_from(offset).unwrap();
        let found = bytes
            .get(at..at + data.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        data.copy_from_slice(found);
        Ok(())
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.is_there()?;
        let at = usize::try_from(offset).unwrap();
        let mut bytes = self.bytes(region.index.0);
        let place = bytes
            .get_mut(at..at + data.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        place.copy_from_slice(data);
        self.called(format!("write {} {offset:#x} {data:x?}", region.index.0))
    }

    fn map(&self, _: &RegionInfo, area: Area) -> io::Result<Arc<dyn HostMapping>> {
        let len = usize::try_from(area.len.next_multiple_of(4096)).unwrap();
        Ok(Arc::new(FakeMapping(len)))
    }

    fn irq(&self, index: IrqIndex) -> io::Result<IrqInfo> {
        Ok(IrqInfo {
            count: match index {
                IrqIndex::Intx => self.has_pin.into(),
                // vfio-pci, of a conventional PCI function.
                IrqIndex::Err => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
                IrqIndex::Req => 1,
                _ => 2048,
            },
            can_grow: self.can_grow,
        })
    }

    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        let fds: Vec<_> = eventfds
            .iter()
            .map(|fd| if fd.is_some() { "fd" } else { "-" })
            .collect();
        self.called(format!("arm {index:?} {start} [{}]", fds.join(" ")))?;
        if matches!(index, IrqIndex::Err | IrqIndex::Req) {
            return Ok(());
        }
        if index == IrqIndex::Intx && self.pin_is_taken.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let with_fd: Vec<_> = eventfds.iter().map(Option::is_some).collect();
        self.set(index, usize::try_from(start).unwrap(), &with_fd)
    }

    fn unmask_on(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        self.called("unmask on fd".to_owned())?;
        match self.is_armed(IrqIndex::Intx, 0) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn signal(&self, index: IrqIndex, vector: u32) -> io::Result<()> {
        self.called(format!("signal {index:?} {vector}"))
    }

    fn disarm(&self, index: IrqIndex) -> io::Result<()> {
        self.called(format!("disarm {index:?}"))?;
        let gone = lock(&self.enabled).take_if(|enabled| enabled.index == index);
        gone.map(drop).ok_or(io::ErrorKind::InvalidInput.into())
    }

    fn can_reset(&self) -> bool {
        !self.cannot_reset
    }

    fn reset_methods(&self) -> Vec<String> {
        self.reset_methods.clone()
    }

    fn reset(&self) -> io::Result<()> {
        self.called("reset".to_owned())
    }

    fn hot_reset_scope(&self) -> io::Result<Vec<Affected>> {
        Ok(self.scope.clone())
    }

    fn hot_reset(&self) -> io::Result<()> {
        self.called("hot reset".to_owned())?;
        let errno = self.hot_reset_errno.map(io::Error::from_raw_os_error);
        errno.map_or(Ok(()), Err)
    }
}

/// Pins whose connections it writes down: pin n is on line 10 + n.
pub(super) struct FakePins(pub(super) Log);

struct FakeWire {
    eventfd: File,
    log: Log,
}

impl IntxSource for FakePins {
    fn line(&self, pin: u8) -> u8 {
        10 + pin
    }

    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxWire>> {
        lock(&self.0).push(format!("connect {pin}"));
        let eventfd = File::open("/dev/null")?;
        let log = self.0.clone();
        Ok(Box::new(FakeWire { eventfd, log }))
    }
}

impl IntxWire for FakeWire {
    fn trigger(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    fn resample(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl Drop for FakeWire {
    fn drop(&mut self) {
        lock(&self.log).push("disconnect".to_owned());
    }
}

type Routes = Vec<Vec<(usize, Option<MsiMessage>)>>;

/// Vectors that record their routes.
pub(super) struct FakeVectors {
    eventfd: File,
    record: Arc<Record>,
}

#[derive(Default)]
struct Record {
    routes: Mutex<Routes>,
    latched: Mutex<Vec<usize>>,
}

/// Gives out vectors whose routes it can tell.
#[derive(Default)]
pub(super) struct FakeSource {
    record: Arc<Record>,
}

impl FakeVectors {
    pub(super) fn new() -> Self {
        Self {
            eventfd: File::open("/dev/null").unwrap(),
            record: Arc::default(),
        }
    }
}

impl FakeSource {
    pub(super) fn take_routes(&self) -> Routes {
        std::mem::take(&mut lock(&self.record.routes))
    }

    pub(super) fn latch(&self, vector: usize) {
        lock(&self.record.latched).push(vector);
    }

    pub(super) fn is_latched(&self, vector: usize) -> bool {
        lock(&self.record.latched).contains(&vector)
    }
}

impl MsiSource for FakeSource {
    fn vectors(&self, _: usize) -> io::Result<Box<dyn MsiVectors>> {
        let record = self.record.clone();
        Ok(Box::new(FakeVectors {
            record,
            ..FakeVectors::new()
        }))
    }
}

impl MsiVectors for FakeVectors {
    fn eventfd(&self, _: usize) -> io::Result<BorrowedFd<'_>> {
        Ok(self.eventfd.as_fd())
    }

    fn route(&self, changes: &[(usize, Option<MsiMessage>)]) -> io::Result<()> {
        lock(&self.record.routes).push(changes.to_vec());
        Ok(())
    }

    fn is_latched(&self, vector: usize) -> bool {
        lock(&self.record.latched).contains(&vector)
    }

    fn clear_latched(&self) {
        lock(&self.record.latched).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
