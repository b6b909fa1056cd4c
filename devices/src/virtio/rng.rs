//! The entropy device (virtio 1.2 §5.4): buffers to be filled with random bytes, which are the host's.

use std::{fs::File, io};

use vm_memory::GuestMemoryMmap;

use super::{Answer, Backend, Buffer, Chain, Config, Garbage, Kind};

const DEVICE_TYPE: u16 = 4;
/// Class ff (unassigned): PCI 3.0 appendix D has none for it.
const CLASS: u32 = 0xff_00_00;
const QUEUE_SIZE: u16 = 64;
/// The most bytes of one request that are filled: a driver asks for some 64 at a time, and nobody may keep the thread busy for
/// gigabytes. To fill less than asked for is allowed (§5.4.6.2).
const MOST: usize = 64 << 10;

/// The entropy device.
pub struct Rng {
    source: File,
}

impl Rng {
    /// Over the host's random numbers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            source: File::open("/dev/urandom")?,
        })
    }
}

impl Backend for Rng {
    fn kind(&self) -> Kind {
        Kind {
            name: "rng0".into(),
            device_type: DEVICE_TYPE,
            class: CLASS,
            features: 0,
            queues: vec![QUEUE_SIZE],
            config: Config::default(),
        }
    }

    fn agree(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        _queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        if request.writable.is_empty() {
            return Err(Garbage::Request("random bytes"));
        }
        let mut filled = 0;
        for buffer in &request.writable {
            let part = Buffer {
                len: buffer.len.min(MOST - filled),
                ..*buffer
            };
            if let Err(error) = part.fill(memory, &mut self.source) {
                log::warn!("rng0: /dev/urandom: {error}");
                break;
            }
            filled += part.len;
        }
        Ok(Answer::Done(u32::try_from(filled).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn buffers_are_filled_and_nothing_beside_them_up_to_a_limit() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut rng = Rng::new().unwrap();
        let buffer = |address, len| Buffer {
            address: GuestAddress(address),
            len,
        };
        let chain = Chain {
            writable: vec![buffer(0x1000, 64), buffer(0x2000, 1 << 19)],
            ..Chain::default()
        };
        assert_eq!(rng.serve(0, chain, &memory), Ok(Answer::Done(64 << 10)));
        let read = |at| {
            let mut bytes = [0; 64];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let filled = 0x2000 + (64 << 10) - 64;
        assert!(
            [0x1000, 0x2000, filled - 64]
                .iter()
                .all(|&at| read(at) != [0; 64])
        );
        assert!(
            [0xfc0, 0x1040, filled]
                .iter()
                .all(|&at| read(at) == [0; 64])
        );
    }

    #[test]
    fn a_request_without_room_is_garbage() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let served = Rng::new().unwrap().serve(0, Chain::default(), &memory);
        assert_eq!(served, Err(Garbage::Request("random bytes")));
    }
}
