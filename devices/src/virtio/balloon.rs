//! The memory balloon (virtio 1.2 §5.5): pages that a guest does without, and that the host has back until it wants them again.
//!
//! Left out: statistics, hints while a guest migrates, and what the driver writes of how many pages it gave, which its requests say.
//!
//! §5.5.2 numbers the queues by what they are for; Linux numbers those that it uses (vp_find_vqs of
//! drivers/virtio/virtio_pci_common.c). All that follow the first two are for the one thing that is offered besides.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{Answer, Backend, Buffer, Chain, Garbage, Kind, chain};
use crate::mapping::Discard;

const DEVICE_TYPE: u16 = 5;
/// Class ff (unassigned): PCI 3.0 appendix D has none for it.
const CLASS: u32 = 0xff_00_00;
const QUEUE_SIZE: u16 = 128;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Statistics, hints and reports (§5.5.2), of which there are reports.
const REPORTS: usize = 3;

/// §5.5.3: a guest that runs out of memory takes pages back by itself.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// It says which of its pages are free.
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Bytes of a page, whatever the guest's own are (§5.5.6).
const PAGE: u64 = 4096;
/// Length in bytes of a page's number.
const NUMBER_LEN: usize = 4;
/// Pages of one request: Linux names 256. Nobody may keep the thread busy for more than a GiB.
const MOST_PAGES: usize = 1 << 18;

/// The balloon.
pub struct Balloon {
    pages: u32,
    has_reports: bool,
    ram: Arc<dyn Discard>,
    given: Arc<AtomicU64>,
    failures: u64,
}

impl Balloon {
    /// One that asks for `pages` pages of 4 KiB, and with `has_reports` for whatever is free besides.
    pub fn new(pages: u32, has_reports: bool, ram: Arc<dyn Discard>) -> Self {
        Self {
            pages,
            has_reports,
            ram,
            given: Arc::default(),
            failures: 0,
        }
    }

    /// How many pages are in it, from now on.
    pub fn given(&self) -> Arc<AtomicU64> {
        self.given.clone()
    }

    fn inflate(&mut self, request: &Chain, memory: &GuestMemoryMmap) -> Result<(), Garbage> {
        let mut numbers = numbers(&request.readable, memory)?;
        let count = numbers.len() as u64;
        // Linux names one page after the other, mostly downwards; the host takes them by ranges.
        numbers.sort_unstable();
        numbers.dedup();
        for run in numbers.chunk_by(|one, next| next - one == 1) {
            if let [first, ..] = run {
                let at = GuestAddress(u64::from(*first) * PAGE);
                self.discard(at, run.len() as u64 * PAGE);
            }
        }
        self.given.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Nothing has to be done for pages that come back: the host gives the guest others when it touches them.
    fn deflate(&mut self, request: &Chain, memory: &GuestMemoryMmap) -> Result<(), Garbage> {
        let count = numbers(&request.readable, memory)?.len() as u64;
        let left = |given: u64| Some(given.saturating_sub(count));
        let _ = self
            .given
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        Ok(())
    }

    fn discard(&mut self, at: GuestAddress, len: u64) {
        if let Err(error) = self.ram.discard(at, len) {
            self.failures += 1;
            // A guest can name what is no memory as often as it likes.
            if self.failures.is_power_of_two() {
                let failures = self.failures;
                log::warn!(
                    "balloon0: {len:#x} bytes at {:#x} stay: {error} (failure {failures})",
                    at.0
                );
            }
        }
    }
}

impl Backend for Balloon {
    fn kind(&self) -> Kind {
        let (reports, queues) = match self.has_reports {
            true => (F_PAGE_REPORTING, 2 + REPORTS),
            false => (0, 2),
        };
        // num_pages, actual (§5.5.4).
        let config = [self.pages.to_le_bytes(), [0; 4]].concat();
        Kind {
            name: "balloon0".into(),
            device_type: DEVICE_TYPE,
            class: CLASS,
            features: F_DEFLATE_ON_OOM | reports,
            queues: vec![QUEUE_SIZE; queues],
            config: config.into(),
        }
    }

    /// A driver that starts has all of its memory.
    fn agree(&mut self, _features: u64) {
        self.given.store(0, Ordering::Relaxed);
    }

    fn serve(
        &mut self,
        queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        match queue {
            INFLATE => self.inflate(&request, memory)?,
            DEFLATE => self.deflate(&request, memory)?,
            // The pages are the request's own buffers, to be filled with anything (§5.5.6.7).
            _ => {
                for buffer in &request.writable {
                    self.discard(buffer.address, buffer.len as u64);
                }
            }
        }
        Ok(Answer::Done(0))
    }
}

/// The pages that a request names.
fn numbers(buffers: &[Buffer], memory: &GuestMemoryMmap) -> Result<Vec<u32>, Garbage> {
    let garbage = Garbage::Request("page numbers");
    let len: usize = buffers.iter().map(|buffer| buffer.len).sum();
    if len > MOST_PAGES * NUMBER_LEN || !len.is_multiple_of(NUMBER_LEN) {
        return Err(garbage);
    }
    let bytes = chain::gather(buffers, len, memory, garbage)?;
    let (numbers, _) = bytes.as_chunks::<NUMBER_LEN>();
    Ok(numbers
        .iter()
        .map(|number| u32::from_le_bytes(*number))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use vm_memory::Bytes;

    use super::{
        super::testing::{MEMORY_LEN, ram},
        *,
    };
    use crate::testing::Random;

    /// Which pages were discarded, of a RAM of `MEMORY_LEN` bytes.
    #[derive(Default)]
    struct Pages(Mutex<Vec<u64>>);

    impl Discard for Pages {
        fn discard(&self, at: GuestAddress, len: u64) -> io::Result<()> {
            let end = at.0.checked_add(len).filter(|end| *end <= MEMORY_LEN);
            let end = end.ok_or(io::ErrorKind::InvalidInput)?;
            let pages = (at.0 / PAGE)..(end / PAGE);
            self.0.lock().unwrap().extend(pages);
            Ok(())
        }
    }

    struct Table {
        pages: Arc<Pages>,
        balloon: Balloon,
        memory: GuestMemoryMmap,
    }

    fn table() -> Table {
        let pages = Arc::<Pages>::default();
        Table {
            balloon: Balloon::new(64, true, pages.clone()),
            pages,
            memory: ram().0.clone(),
        }
    }

    impl Table {
        fn name(&mut self, queue: usize, numbers: &[u32]) -> Result<Answer, Garbage> {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            let at = GuestAddress(0x1000);
            self.memory.write_slice(&bytes, at).unwrap();
            // Cut inside of a number.
            let first = bytes.len().min(3);
            let buffer = |at, len| Buffer {
                address: GuestAddress(at),
                len,
            };
            let chain = Chain {
                readable: vec![
                    buffer(0x1000, first),
                    buffer(0x1000 + first as u64, bytes.len() - first),
                ],
                ..Chain::default()
            };
            self.balloon.serve(queue, chain, &self.memory)
        }

        fn given(&self) -> u64 {
            self.balloon.given().load(Ordering::Relaxed)
        }

        fn discarded(&self) -> Vec<u64> {
            std::mem::take(&mut self.pages.0.lock().unwrap())
        }
    }

    #[test]
    fn pages_that_the_guest_gives_up_go_back_to_the_host_in_any_order_and_once() {
        let mut table = table();
        let numbers = [9, 8, 7, 20, 20, 3];
        assert_eq!(table.name(INFLATE, &numbers), Ok(Answer::Done(0)));
        assert_eq!(table.discarded(), [3, 7, 8, 9, 20]);
        assert_eq!(table.given(), 6);
        assert_eq!(table.name(DEFLATE, &[9, 8]), Ok(Answer::Done(0)));
        assert_eq!((table.given(), table.discarded()), (4, vec![]));
        table.balloon.agree(0);
        assert_eq!(table.given(), 0, "another driver has all of its memory");
    }

    #[test]
    fn free_pages_go_back_as_they_are_reported_by_whichever_queue() {
        for queue in 2..5 {
            let mut table = table();
            let chain = Chain {
                writable: vec![Buffer {
                    address: GuestAddress(0x20000),
                    len: 0x2000,
                }],
                ..Chain::default()
            };
            let served = table.balloon.serve(queue, chain, &table.memory);
            assert_eq!(served, Ok(Answer::Done(0)));
            assert_eq!(table.discarded(), [0x20, 0x21]);
        }
    }

    #[test]
    fn what_is_no_page_of_the_guests_takes_nothing_from_anybody() {
        let mut table = table();
        let numbers = [u32::MAX, 1 << 20, 0xfffff, 2];
        assert_eq!(table.name(INFLATE, &numbers), Ok(Answer::Done(0)));
        assert_eq!(table.discarded(), [2]);
        assert_eq!(table.balloon.failures, 2, "one for each range");
        let too_long = Chain {
            readable: vec![Buffer {
                address: GuestAddress(0),
                len: MOST_PAGES * NUMBER_LEN + 4,
            }],
            ..Chain::default()
        };
        for queue in [INFLATE, DEFLATE] {
            let served = table.balloon.serve(queue, too_long.clone(), &table.memory);
            assert_eq!(served, Err(Garbage::Request("page numbers")));
        }
    }

    #[test]
    fn a_request_names_a_gib_of_pages_at_most_and_none_in_part() {
        let mut table = table();
        let half = |len| Buffer {
            address: GuestAddress(0),
            len,
        };
        // Twice the same half MiB of page numbers, all of them zero.
        let most = |more: usize| Chain {
            readable: vec![half(1 << 19), half((1 << 19) + more)],
            ..Chain::default()
        };
        let served = table.balloon.serve(INFLATE, most(0), &table.memory);
        assert_eq!((served, table.discarded()), (Ok(Answer::Done(0)), vec![0]));
        for request in [most(4), most(2)] {
            let served = table.balloon.serve(INFLATE, request, &table.memory);
            assert_eq!(served, Err(Garbage::Request("page numbers")));
        }
        let in_part = Chain {
            readable: vec![half(6)],
            ..Chain::default()
        };
        let served = table.balloon.serve(INFLATE, in_part, &table.memory);
        assert_eq!(served, Err(Garbage::Request("page numbers")));
    }

    #[test]
    fn reports_bring_a_feature_and_the_queues_up_to_theirs() {
        // virtio 1.2 §5.5.2 and §5.5.3: inflate, deflate, statistics, hints, reports; features 2 and 5.
        for (has_reports, features, queues) in [(false, 0b00_0100, 2), (true, 0b10_0100, 5)] {
            let kind = Balloon::new(64, has_reports, Arc::<Pages>::default()).kind();
            assert_eq!((kind.features, kind.queues.len()), (features, queues));
            let mut config = [0xee; 8];
            kind.config.read(0, &mut config);
            assert_eq!(config, [64, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn whatever_pages_are_named_those_and_no_others_are_discarded() {
        let mut random = Random::new(11);
        for _ in 0..2000 {
            let mut table = table();
            let count = random.within(0..40);
            let numbers: Vec<u32> = (0..count)
                .map(|_| u32::try_from(random.within(0..300)).unwrap())
                .collect();
            let _ = table.name(INFLATE, &numbers);
            let mut expected: Vec<u64> = numbers.iter().map(|&n| n.into()).collect();
            expected.sort_unstable();
            expected.dedup();
            // A range that is in part beyond the end of RAM stays in whole.
            let inside = MEMORY_LEN / PAGE;
            let runs = expected.chunk_by(|one, next| next - one == 1);
            let kept: Vec<u64> = runs
                .filter(|run| run.iter().all(|page| *page < inside))
                .flatten()
                .copied()
                .collect();
            assert_eq!(table.discarded(), kept);
        }
    }
}
