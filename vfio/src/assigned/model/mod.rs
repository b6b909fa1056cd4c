//! A straightforward model of assigned functions, and a guest that does anything at all to both.
//!
//! Cards of every shape stand together in one guest. Each step is one access that a guest can make, of any width and at any offset, or
//! something that happens to a card. After each, the function and the model must agree: on what was read, on what the card was told,
//! on what answers where, on what is mapped, and on which vector goes where.
//!
//! A failure prints the seed; `VIADUCT_SEED=N cargo test -p vfio model` plays that game alone.

mod card;
mod deck;
mod garbage;
mod hardware;
mod oracle;
mod places;
mod slots;
mod table;

use std::{env, thread};

use self::table::Table;

const GAMES: u64 = 128;
const STEPS: usize = 16_000;

/// Plays one game, and says which if that fails.
fn play(seed: u64) {
    struct Named(u64, usize);
    impl Drop for Named {
        fn drop(&mut self) {
            if thread::panicking() {
                eprintln!("VIADUCT_SEED={} fails at step {}", self.0, self.1);
            }
        }
    }
    let mut game = Named(seed, 0);
    let mut table = Table::new(seed);
    for step in 0..STEPS {
        game.1 = step;
        table.step();
    }
}

#[test]
fn vcpus_at_odds_with_each_other_neither_hang_nor_leave_anything_behind() {
    (0..16).for_each(|seed| Table::new(seed).storm(seed));
}

#[test]
fn a_million_steps_leave_the_function_as_a_model_says() {
    if let Ok(seed) = env::var("VIADUCT_SEED") {
        return play(seed.parse().unwrap());
    }
    assert!(STEPS * usize::try_from(GAMES).unwrap() >= 1_000_000);
    thread::scope(|scope| {
        let players = 4;
        let player = |number| move || (number..GAMES).step_by(4).for_each(play);
        let players: Vec<_> = (0..players)
            .map(|number| scope.spawn(player(number)))
            .collect();
        players
            .into_iter()
            .for_each(|player| player.join().unwrap());
    });
}
