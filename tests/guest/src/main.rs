//! `lab-guest`: what a guest of the lab does to hardware without a driver. Runs in L2, and what needs no card (`page`) in L1.
//! Says what it did in one line; otherwise what went wrong, with status 1.

mod edu;
mod function;
mod mapping;
mod message;
mod page;
mod picture;
mod random;
mod storm;
mod xhci;

use std::io;
use std::process::ExitCode;

use edu::Edu;

const USAGE: &str = "usage: lab-guest edu SLOT compute | intx TIMES | msi TIMES | dma [ADDRESS] | stray ADDRESS
       lab-guest xhci SLOT msi TIMES        interrupts of several interrupters
       lab-guest storm SLOT SEED ROUNDS     every dword of configuration space, any width
       lab-guest decode SLOT TIMES          memory decoding off and on
       lab-guest picture fb0                a known picture on a framebuffer
       lab-guest page                       a page with a known content; says where, and at the end of stdin whether it is intact";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(result) = obey(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match result {
        Ok(said) => println!("{} ok: {said}", words.join(" ")),
        Err(error) => {
            println!("{} FAILED: {error}", words.join(" "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Nothing, when the words make no sense.
fn obey(words: &[&str]) -> Option<io::Result<String>> {
    let result = match *words {
        ["edu", slot, ref what @ ..] => edu(slot, what)?,
        ["xhci", slot, "msi", times] => xhci::interrupt(slot, u32::try_from(number(times)?).ok()?),
        ["storm", slot, seed, rounds] => storm::config(slot, number(seed)?, number(rounds)?),
        ["decode", slot, times] => storm::decode(slot, number(times)?),
        ["picture", screen] => picture::draw(screen),
        ["page"] => page::keep(),
        _ => return None,
    };
    Some(result)
}

fn edu(slot: &str, what: &[&str]) -> Option<io::Result<String>> {
    let edu = match Edu::open(slot) {
        Ok(edu) => edu,
        Err(error) => return Some(Err(error)),
    };
    let times = |word: &str| u32::try_from(number(word)?).ok();
    let result = match *what {
        ["compute"] => edu.compute(),
        ["intx", word] => edu.interrupt_by_pin(times(word)?),
        ["msi", word] => edu.interrupt_by_message(times(word)?),
        ["dma"] => edu.copy(None),
        ["dma", address] => edu.copy(Some(number(address)?)),
        ["stray", address] => edu.stray(number(address)?),
        _ => return None,
    };
    Some(result)
}

/// Decimal, or hexadecimal with 0x.
fn number(word: &str) -> Option<u64> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("16"), Some(16));
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(number("1x"), None);
    }

    #[test]
    fn what_is_not_understood_is_not_done() {
        assert!(obey(&[]).is_none());
        assert!(obey(&["storm", "8"]).is_none());
        assert!(obey(&["storm", "8", "seed", "1"]).is_none());
    }
}
