//! A page of the host's own, which a guest's device is aimed at and must not reach.

use std::io::{self, Read};

use crate::mapping::Mapping;

const LEN: usize = 4096;

/// Fills a page, says where it is, waits for the end of stdin, and fails if anything in it has changed.
pub(crate) fn keep() -> io::Result<String> {
    let page = Mapping::own()?;
    for offset in 0..LEN {
        page.write(offset, content(offset));
    }
    println!("page at {:#x}", page.physical()?);
    io::stdin().read_to_end(&mut Vec::new())?;
    match (0..LEN).find(|offset| page.read::<u8>(*offset) != content(*offset)) {
        None => Ok("the page is as it was".into()),
        Some(offset) => Err(io::Error::other(format!("byte {offset} has changed"))),
    }
}

/// Never 0x5a or 0, which is what strays write and what fresh memory is.
fn content(offset: usize) -> u8 {
    0x80 | offset.to_le_bytes()[0]
}
