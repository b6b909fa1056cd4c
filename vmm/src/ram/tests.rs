use std::{ptr, sync::Mutex};

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    populate::{POPULATE_CHUNK, chunks},
    range::HUGE_PAGE,
    *,
};
use crate::tiny_guest::skipped;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn two_pieces() -> [RamRange; 2] {
    let piece = |guest, len| RamRange { guest, len };
    [piece(0, 34 * MIB), piece(4 * GIB, 6 * MIB)]
}

/// What the kernel says about the mapping that `address` is in, under `name` (proc(5), smaps).
fn smaps(address: usize, name: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let is_start = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        Some((parse(start)?..parse(end)?).contains(&address))
    };
    let mut lines = text.lines().skip_while(|line| is_start(line) != Some(true));
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Some(found?.trim().to_owned())
}

fn resident_bytes(ram: &Ram) -> u64 {
    let kib = |address| {
        let text = smaps(address, "Rss").unwrap();
        text.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let addresses = ram.ranges().map(|(_, memory)| memory.address());
    addresses.map(kib).sum::<u64>() << 10
}

#[test]
fn ram_is_where_and_as_long_as_the_plan_says() {
    let ram = Ram::reserve(&two_pieces(), Pages::Small).unwrap();
    assert_eq!(ram.len_bytes(), 40 * MIB);
    let regions: Vec<_> = ram
        .memory()
        .iter()
        .map(|region| (region.start_addr().0, region.len()))
        .collect();
    assert_eq!(regions, [(0, 34 * MIB), (4 * GIB, 6 * MIB)]);
    let last = GuestAddress(4 * GIB + 6 * MIB - 1);
    ram.memory().write_obj(7_u8, last).unwrap();
    assert!(
        ram.memory()
            .write_obj(7_u8, GuestAddress(last.0 + 1))
            .is_err()
    );
    assert!(
        ram.memory()
            .write_obj(7_u8, GuestAddress(34 * MIB))
            .is_err()
    );
    // What vm-memory writes to is what a memory slot maps.
    let (guest, memory) = ram.ranges().nth(1).unwrap();
    assert_eq!((guest, memory.len() as u64), (4 * GIB, 6 * MIB));
    let at = memory.address() + memory.len() - 1;
    // SAFETY: the address is the last byte of the mapping, which `memory` keeps.
    let byte = unsafe { ptr::with_exposed_provenance::<u8>(at).read_volatile() };
    assert_eq!(byte, 7);
}

#[test]
fn every_piece_is_aligned_to_2_mib_in_this_process() {
    // Kernels that align large mappings by themselves leave those of odd sizes where they fall.
    for pages in 1..32 {
        let range = Range::map(HUGE_PAGE + pages * 4096, Pages::TransparentHuge.into()).unwrap();
        assert_eq!(range.address() % HUGE_PAGE, 0);
        assert_eq!(range.len(), HUGE_PAGE + pages * 4096);
    }
}

#[test]
fn transparent_huge_pages_are_advised_as_asked_and_nothing_goes_to_a_core_file() {
    for (pages, advice) in [(Pages::Small, "nh"), (Pages::TransparentHuge, "hg")] {
        let ram = Ram::reserve(&two_pieces(), pages).unwrap();
        let (_, memory) = ram.ranges().next().unwrap();
        let flags = smaps(memory.address(), "VmFlags").unwrap();
        assert!(flags.split(' ').any(|flag| flag == advice), "{flags}");
        assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
    }
}

#[test]
fn populating_brings_in_every_page_and_nothing_else_does() {
    let ram = Ram::reserve(&two_pieces(), Pages::Small).unwrap();
    assert_eq!(resident_bytes(&ram), 0);
    ram.populate().wait().unwrap();
    assert_eq!(resident_bytes(&ram), 40 * MIB);
}

#[test]
fn chunks_cover_a_range_to_its_last_byte_without_overlap() {
    for len in [
        4096,
        POPULATE_CHUNK,
        POPULATE_CHUNK + 4096,
        3 * POPULATE_CHUNK,
    ] {
        let range = Arc::new(Range::map(len, Pages::Small.into()).unwrap());
        let mut next = 0;
        for (_, offset, len) in chunks(&range) {
            assert_eq!(offset, next);
            next += len;
        }
        assert_eq!(next, len);
    }
}

#[test]
fn memory_is_given_back_to_the_host_with_the_last_who_has_it() {
    // So much that nothing which is mapped meanwhile can come to lie at its beginning.
    let plan = [RamRange {
        guest: 0,
        len: 64 * GIB,
    }];
    let ram = Ram::reserve(&plan, Pages::Small).unwrap();
    let (_, memory) = ram.ranges().next().unwrap();
    let address = memory.address();
    drop(ram);
    assert!(
        smaps(address, "Size").is_some(),
        "a memory slot still has it"
    );
    drop(memory);
    assert_eq!(smaps(address, "Size"), None);
}

/// Who looks at the pool wants nobody else to take from it.
static POOL: Mutex<()> = Mutex::new(());

/// A number of the host's pool of 2 MiB pages.
fn pool(file: &str) -> Option<u64> {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn unpromised() -> Option<u64> {
    pool("free_hugepages")?.checked_sub(pool("resv_hugepages")?)
}

#[test]
fn huge_pages_are_reserved_before_they_are_populated() {
    let _alone = POOL.lock().unwrap();
    let Some(free) = unpromised().filter(|&free| free >= 2) else {
        return skipped("this host has no two huge pages to spare");
    };
    let plan = [RamRange {
        guest: 0,
        len: 4 * MIB,
    }];
    let ram = Ram::reserve(&plan, Pages::Huge2M).unwrap();
    // Whoever wants what is promised by now is told at once, and not by a SIGBUS later.
    let all = usize::try_from(free).unwrap() * HUGE_PAGE;
    assert!(Range::map(all, Pages::Huge2M.into()).is_err());
    ram.populate().wait().unwrap();
    assert_eq!(unpromised(), Some(free - 2));
    let (_, memory) = ram.ranges().next().unwrap();
    let flags = smaps(memory.address(), "VmFlags").unwrap();
    assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
}

#[test]
fn missing_huge_pages_are_an_error_that_says_how_to_reserve_them() {
    let _alone = POOL.lock().unwrap();
    let (Some(free), Some(all)) = (unpromised(), pool("nr_hugepages")) else {
        return skipped("this kernel has no huge pages");
    };
    let plan = [RamRange {
        guest: 0,
        len: (free + 3) * 2 * MIB,
    }];
    let Err(missing) = Ram::reserve(&plan, Pages::Huge2M) else {
        panic!("{} huge pages were had of {free}", free + 3);
    };
    assert_eq!(
        missing.to_string(),
        format!(
            "{} huge pages of 2048 KiB are needed, the host has {free} free\n  \
             reserve them:  echo {} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            free + 3,
            all + 3
        )
    );
}

#[test]
fn ram_that_is_not_made_of_whole_huge_pages_is_refused() {
    let plan = [RamRange {
        guest: 0,
        len: GIB + 2 * MIB,
    }];
    let Err(refused) = Ram::reserve(&plan, Pages::Huge1G) else {
        panic!("half a page was had");
    };
    assert!(
        matches!(refused, RamError::NotWholePages { .. }),
        "{refused}"
    );
}

#[test]
fn more_than_the_address_space_is_refused() {
    let plan = [RamRange {
        guest: 0,
        len: 1 << 60,
    }];
    let Err(refused) = Ram::reserve(&plan, Pages::Small) else {
        panic!("an exbibyte was had");
    };
    assert!(matches!(refused, RamError::Map { .. }), "{refused}");
}

#[test]
fn ram_around_a_hole_is_all_of_it_but_the_hole_at_the_same_place() {
    let ram = Ram::reserve(&two_pieces(), Pages::Small).unwrap();
    let whole: Vec<_> = ram.ranges().collect();
    let pieces: Vec<_> = ram.around(&(0xa_0000..0xc_0000));
    let placed: Vec<_> = pieces
        .iter()
        .map(|(at, piece)| (*at, piece.len() as u64))
        .collect();
    assert_eq!(
        placed,
        [
            (0, 0xa_0000),
            (0xc_0000, 34 * MIB - 0xc_0000),
            (4 * GIB, 6 * MIB)
        ]
    );
    assert_eq!(pieces[0].1.address(), whole[0].1.address());
    assert_eq!(pieces[1].1.address(), whole[0].1.address() + 0xc_0000);
    assert_eq!(pieces[2].1.address(), whole[1].1.address());
    // Over an end, past all of it, around a whole range.
    let lens = |hole| {
        ram.around(&hole)
            .iter()
            .map(|(_, piece)| piece.len() as u64)
            .sum::<u64>()
    };
    assert_eq!(lens(33 * MIB..2 * GIB), 39 * MIB);
    assert_eq!(lens(2 * GIB..3 * GIB), 40 * MIB);
    assert_eq!(lens(0..34 * MIB), 6 * MIB);
}

/// Small pages in a file.
const SHARED: Backing = Backing {
    pages: Pages::Small,
    is_shared: true,
    node: None,
};

#[test]
fn shared_ram_is_in_a_sealed_file_and_works_like_any_other() {
    let ram = Ram::reserve(&two_pieces(), SHARED).unwrap();
    let (_, memory) = ram.ranges().nth(1).unwrap();
    assert_eq!(memory.address() % HUGE_PAGE, 0);
    let flags = smaps(memory.address(), "VmFlags").unwrap();
    assert!(flags.split(' ').any(|flag| flag == "sh"), "{flags}");
    ram.populate().wait().unwrap();
    assert_eq!(resident_bytes(&ram), 40 * MIB);
    let last = GuestAddress(4 * GIB + 6 * MIB - 1);
    ram.memory().write_obj(7_u8, last).unwrap();
    assert_eq!(ram.memory().read_obj::<u8>(last).unwrap(), 7);
    let ours = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let named = |entry: &std::fs::DirEntry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        target.to_string_lossy().contains("memfd:guest-ram")
    };
    let file = ours.into_iter().find(named).unwrap();
    let again = std::fs::File::options()
        .write(true)
        .open(file.path())
        .unwrap();
    assert!(again.set_len(0).is_err(), "nobody can cut it");
}

#[test]
fn memory_prefers_the_node_that_it_was_asked_for() {
    let policies = || std::fs::read_to_string("/proc/self/numa_maps").ok();
    if policies().is_none() {
        return skipped("this kernel knows of no memory nodes");
    }
    let backing = Backing {
        node: Some(0),
        ..Pages::Small.into()
    };
    let ram = Ram::reserve(&two_pieces(), backing).unwrap();
    let (_, memory) = ram.ranges().next().unwrap();
    let start = format!("{:x} prefer", memory.address());
    let policies = policies().unwrap();
    assert!(
        policies.lines().any(|line| line.starts_with(&start)),
        "{policies}"
    );
    // One that is not there costs nothing but the preference.
    let nowhere = Backing {
        node: Some(5000),
        ..backing
    };
    assert!(Ram::reserve(&two_pieces(), nowhere).is_ok());
}
