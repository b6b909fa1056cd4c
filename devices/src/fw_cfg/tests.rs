//! What Linux's driver does, and garbage.

use vm_memory::GuestMemoryMmap;

use super::*;
use crate::testing::Random;

const MEMORY_LEN: usize = 1 << 20;

struct Memory(GuestMemoryMmap);

impl GuestRam for Memory {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }
}

struct Table {
    memory: GuestMemoryMmap,
    device: FwCfg,
}

fn table() -> Table {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap();
    let device = FwCfg::new(Arc::new(Memory(memory.clone())));
    Table { memory, device }
}

/// Where the tests describe transfers, and where the data is.
const ACCESS: u32 = 0x1000;
const BUFFER: u64 = 0x2000;

impl Table {
    fn write(&self, offset: u64, data: &[u8]) {
        assert_eq!(self.device.write(offset, data), Action::None);
    }

    /// What the driver finds as the result of a transfer.
    fn transfer(&self, control: u32, len: u32, address: u64) -> u32 {
        let access = [&control.to_be_bytes()[..], &len.to_be_bytes()].concat();
        let access = [access, address.to_be_bytes().to_vec()].concat();
        let at = GuestAddress(ACCESS.into());
        self.memory.write_slice(&access, at).unwrap();
        self.write(DMA, &0_u32.to_be_bytes());
        self.write(DMA_LOW, &ACCESS.to_be_bytes());
        u32::from_be_bytes(self.memory.read_obj(at).unwrap())
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(BUFFER))
            .unwrap();
        bytes
    }

    /// Tells of a note as Linux does.
    fn tell(&self, format: u16, len: u32, address: u64) -> u32 {
        let file = [&[0, 0], &format.to_le_bytes()[..], &len.to_le_bytes()].concat();
        let file = [file, address.to_le_bytes().to_vec()].concat();
        self.memory
            .write_slice(&file, GuestAddress(BUFFER))
            .unwrap();
        let control = u32::from(VMCOREINFO) << 16 | CONTROL_SELECT | CONTROL_WRITE;
        self.transfer(control, 16, BUFFER)
    }
}

#[test]
fn the_driver_finds_the_device_its_dma_and_the_file() {
    let table = table();
    let read = |selector: u16, count| {
        table.write(SELECTOR, &selector.to_le_bytes());
        let byte = |_| {
            let mut byte = [0];
            table.device.read(DATA, &mut byte);
            byte[0]
        };
        (0..count).map(byte).collect::<Vec<u8>>()
    };
    assert_eq!(read(SIGNATURE, 6), *b"QEMU\0\0");
    assert_eq!(read(ID, 4), [3, 0, 0, 0]);
    let directory = read(DIRECTORY, 68);
    assert_eq!(directory[..12], [0, 0, 0, 1, 0, 0, 0, 16, 0, 0x20, 0, 0]);
    assert_eq!(directory[12..27], *b"etc/vmcoreinfo\0");
    assert_eq!(read(0x21, 2), [0, 0]);
    let mut signature = [0; 8];
    table.device.read(DMA, &mut signature);
    assert_eq!(signature, *DMA_SIGNATURE);
    table.device.read(DMA_LOW, &mut signature[..4]);
    assert_eq!(signature[..4], *b" CFG");
}

#[test]
fn an_item_is_read_by_dma_piece_by_piece_and_is_zeroes_behind_its_end() {
    let table = table();
    let select = u32::from(DIRECTORY) << 16 | CONTROL_SELECT;
    assert_eq!(table.transfer(select | CONTROL_SKIP, 12, 0), 0);
    assert_eq!(table.transfer(CONTROL_READ, 3, BUFFER), 0);
    assert_eq!(table.buffer(3), *b"etc");
    assert_eq!(table.transfer(CONTROL_READ, 100, BUFFER), 0);
    let said = table.buffer(100);
    assert_eq!(said[..11], *b"/vmcoreinfo");
    assert!(said[11..].iter().all(|&byte| byte == 0));
}

#[test]
fn where_the_kernel_describes_itself_is_known_until_the_next_reset() {
    let table = table();
    assert_eq!(table.device.note(), None);
    assert_eq!(table.tell(FORMAT_ELF, 4132, 0x1234_5000), 0);
    let note = Note {
        address: GuestAddress(0x1234_5000),
        len: 4132,
    };
    assert_eq!(table.device.note(), Some(note));
    assert_eq!(table.tell(0, 4132, 0x1234_5000), 0);
    assert_eq!(table.device.note(), None, "it took that back");
    assert_eq!(table.tell(FORMAT_ELF, 4132, 0x1234_5000), 0);
    table.device.reset();
    assert_eq!(table.device.note(), None);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let table = table();
    let select = |item: u16| u32::from(item) << 16 | CONTROL_SELECT;
    for item in [SIGNATURE, DIRECTORY, 0x21] {
        let done = table.transfer(select(item) | CONTROL_WRITE, 4, BUFFER);
        assert_eq!(done, CONTROL_ERROR, "only the file can be written");
    }
    let beyond = table.transfer(select(VMCOREINFO) | CONTROL_WRITE, 17, BUFFER);
    assert_eq!(beyond, CONTROL_ERROR);
    let nowhere = table.transfer(select(ID) | CONTROL_READ, 4, 1 << 40);
    assert_eq!(nowhere, CONTROL_ERROR);
    let endless = table.transfer(select(ID) | CONTROL_READ, u32::MAX, BUFFER);
    assert_eq!(endless, CONTROL_ERROR);
    assert_eq!(table.device.note(), None);
}

#[test]
fn any_transfers_between_any_accesses_do_what_they_say_and_touch_nothing_else() {
    let mut random = Random::new(510);
    let table = table();
    let mut file = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (mut reads, mut writes, mut refusals) = (0, 0, 0);
    for _ in 0..20_000 {
        // Any access of the registers. A transfer that it starts is described where there are
        // zeroes, and does nothing.
        let len = 1 << random.within(0..4);
        let value = random.value().to_le_bytes();
        table.write(random.within(0..12), &value[..len]);
        let (offset, mut data) = (random.within(0..13), [0; 8]);
        table.device.read(offset, &mut data[..len]);
        for (at, byte) in (offset..).zip(&data[..len]) {
            let is_signature = offset >= DMA && at < DMA + 8;
            match usize::try_from(at - DMA.min(at)).unwrap() {
                byte_of if is_signature => assert_eq!(*byte, DMA_SIGNATURE[byte_of]),
                _ if (offset, len) == (DATA, 1) => {}
                _ => assert_eq!(*byte, 0xff, "{at}"),
            }
        }
        // A transfer from some place in some item, to memory or over its end.
        let other = u16::try_from(random.within(0x21..0x4000)).unwrap();
        let items = [SIGNATURE, ID, DIRECTORY, VMCOREINFO, VMCOREINFO, other];
        let item = items[usize::try_from(random.within(0..6)).unwrap()];
        let content = match item {
            SIGNATURE => b"QEMU".to_vec(),
            ID => vec![3, 0, 0, 0],
            DIRECTORY => directory(),
            VMCOREINFO => file.to_vec(),
            _ => Vec::new(),
        };
        let skipped = usize::try_from(random.within(0..20)).unwrap();
        let len = usize::try_from(random.within(0..40)).unwrap();
        let address = match random.within(0..4) {
            0 => MEMORY_LEN as u64 - random.within(0..40),
            _ => BUFFER,
        };
        let is_there = len == 0 || address + len as u64 <= MEMORY_LEN as u64;
        let select = u32::from(item) << 16 | CONTROL_SELECT | CONTROL_SKIP;
        let [short_skipped, short_len] = [skipped, len].map(|len| u32::try_from(len).unwrap());
        assert_eq!(table.transfer(select, short_skipped, 0), 0);
        let place = GuestAddress(address);
        let given: Vec<u8> = (0..len).map(|at| value[at % 8]).collect();
        let room = len.min(MEMORY_LEN - usize::try_from(address).unwrap());
        table.memory.write_slice(&given[..room], place).unwrap();
        let is_done = if random.within(0..2) == 0 {
            let done = table.transfer(CONTROL_READ, short_len, address) == 0;
            assert_eq!(done, is_there);
            let expected = content
                .into_iter()
                .skip(skipped)
                .chain(std::iter::repeat(0));
            let expected: Vec<u8> = expected.take(len).collect();
            let mut came = vec![0; len];
            if done {
                table.memory.read_slice(&mut came, place).unwrap();
                assert_eq!(came, expected);
            }
            reads += 1;
            done
        } else {
            let done = table.transfer(CONTROL_WRITE, short_len, address) == 0;
            let part = file.get_mut(skipped..skipped + len);
            let part = part.filter(|_| item == VMCOREINFO && is_there);
            assert_eq!(done, part.is_some());
            if let Some(part) = part {
                part.copy_from_slice(&given);
            }
            writes += usize::from(done);
            done
        };
        refusals += usize::from(!is_done);
        // Refused or not, the file is what was written to it.
        let note = table.device.note();
        let len = u32::from_le_bytes(file[4..8].try_into().unwrap());
        let address = GuestAddress(u64::from_le_bytes(file[8..].try_into().unwrap()));
        let told = file[2..4] == [1, 0] && len > 0;
        assert_eq!(note, told.then_some(Note { address, len }));
    }
    assert!(
        reads > 1000 && writes > 500 && refusals > 500,
        "{reads} {writes} {refusals}"
    );
    let mut memory = vec![0; MEMORY_LEN];
    table
        .memory
        .read_slice(&mut memory, GuestAddress(0))
        .unwrap();
    for (start, len) in [(ACCESS.into(), ACCESS_LEN), (BUFFER, 40)] {
        let start = usize::try_from(start).unwrap();
        memory[start..start + len].fill(0);
    }
    memory[MEMORY_LEN - 40..].fill(0);
    assert_eq!(memory.iter().position(|&byte| byte != 0), None);
}
