//! What no driver does: writes to every register of configuration space, and memory decoding switched all the time.

use std::io;

use crate::function::{Function, MEMORY_DECODE};
use crate::random::Random;

/// Writes zeroes, ones and random bits to every dword, as a dword, as words and as bytes, in a random order of values. Says what
/// it did; what becomes of the function is for whoever looks afterwards.
pub(crate) fn config(name: &str, seed: u64, rounds: u64) -> io::Result<String> {
    let function = Function::open(name)?;
    let len = function.config_len()?;
    let mut random = Random(seed);
    let mut writes = 0_u64;
    for _ in 0..rounds {
        for dword in (0..len).step_by(4) {
            for width in [1, 2, 4] {
                let bytes = bytes(&mut random);
                for (index, part) in bytes.chunks(width).enumerate() {
                    function.write(dword + (index * width) as u64, part)?;
                    writes += 1;
                }
                // Whatever it says: reading is part of the storm.
                function.read::<4>(dword)?;
            }
        }
    }
    Ok(format!("seed {seed}: {writes} writes to {len} bytes"))
}

fn bytes(random: &mut Random) -> [u8; 4] {
    match random.next() % 3 {
        0 => [0; 4],
        1 => [0xff; 4],
        _ => {
            let [a, b, c, d, ..] = random.next().to_le_bytes();
            [a, b, c, d]
        }
    }
}

/// Switches memory decoding off and on again so many times.
pub(crate) fn decode(name: &str, times: u64) -> io::Result<String> {
    let function = Function::open(name)?;
    for _ in 0..times {
        function.command(0, MEMORY_DECODE)?;
        function.command(MEMORY_DECODE, 0)?;
    }
    Ok(format!("memory decoding off and on {times} times"))
}
