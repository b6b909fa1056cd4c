use devices::interrupt::IrqLine;

use super::*;
use crate::{
    kvm::interruptible::{self, COUNT, VECTOR, comes_exactly, wire_pin},
    tiny_guest::TinyGuest,
    vcpu::Stop,
};

fn message(number: usize) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: VECTOR[number],
    }
}

/// An interruptible guest, and the routes of its VM.
fn interruptible() -> Option<(TinyGuest, Arc<Routes>)> {
    let guest = interruptible::guest()?;
    let routes = Arc::new(Routes::new(guest.vm.fd.clone()));
    Some((guest, routes))
}

fn signal(vectors: &Vectors, vector: usize) {
    vectors.get(vector).unwrap().eventfd.write(1).unwrap();
}

#[test]
fn a_routed_vector_interrupts_the_guest_with_its_message() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 3);
    vectors
        .route(&[(0, Some(message(0))), (2, Some(message(1)))])
        .unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    for times in 1..5 {
        signal(&vectors, 2);
        comes_exactly(&started, 1, times);
    }
    assert_eq!(started.quadword(COUNT[0]), 0);
    signal(&vectors, 0);
    comes_exactly(&started, 0, 1);
    assert!(!vectors.is_latched(0) && !vectors.is_latched(2));
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn what_is_signalled_while_masked_latches_and_comes_exactly_once() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 1);
    let started = guest.start();
    started.wait_until_it_counts();
    assert!(!vectors.is_latched(0));
    signal(&vectors, 0);
    signal(&vectors, 0);
    assert!(vectors.is_latched(0));
    comes_exactly(&started, 0, 0);

    vectors.route(&[(0, Some(message(0)))]).unwrap();
    comes_exactly(&started, 0, 1);
    assert!(!vectors.is_latched(0), "it was delivered");

    // Nothing is left of it to come a second time.
    vectors.route(&[(0, None)]).unwrap();
    assert!(!vectors.is_latched(0), "it was delivered");
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    comes_exactly(&started, 0, 1);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn what_was_latched_and_cleared_never_comes() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 2);
    let started = guest.start();
    started.wait_until_it_counts();
    vectors.route(&[(1, Some(message(1)))]).unwrap();
    signal(&vectors, 0);
    vectors.clear_latched();
    assert!(!vectors.is_latched(0));
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    comes_exactly(&started, 0, 0);
    signal(&vectors, 0);
    comes_exactly(&started, 0, 1);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn masking_one_vector_leaves_the_others_routed() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 2);
    let started = guest.start();
    started.wait_until_it_counts();
    vectors
        .route(&[(0, Some(message(0))), (1, Some(message(1)))])
        .unwrap();
    vectors.route(&[(0, None)]).unwrap();
    signal(&vectors, 0);
    signal(&vectors, 1);
    comes_exactly(&started, 1, 1);
    comes_exactly(&started, 0, 0);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn one_vector_that_fails_leaves_the_others_of_its_batch_routed() {
    let Some((_guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 1);
    let changes = [(7, Some(message(1))), (0, Some(message(0)))];
    let error = vectors.route(&changes).unwrap_err();
    assert!(error.to_string().contains("vector 7"), "{error}");
    assert!(vectors.get(0).unwrap().is_attached());
}

#[test]
fn a_vector_follows_its_message_without_being_masked() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 1);
    let started = guest.start();
    started.wait_until_it_counts();
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    signal(&vectors, 0);
    comes_exactly(&started, 0, 1);
    vectors.route(&[(0, Some(message(1)))]).unwrap();
    signal(&vectors, 0);
    comes_exactly(&started, 1, 1);
    assert_eq!(started.quadword(COUNT[0]), 1);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn vectors_cost_nothing_until_they_are_used() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes.clone(), 2048);
    vectors
        .route(&[(0, None), (2047, None), (2048, None)])
        .unwrap();
    assert!(!vectors.is_latched(2047));
    vectors.clear_latched();
    assert!(vectors.vectors.iter().all(|made| made.get().is_none()));
    vectors.eventfd(2047).unwrap();
    assert_eq!(
        vectors.vectors.iter().filter_map(OnceLock::get).count(),
        1,
        "only the one that was used"
    );
    assert!(vectors.eventfd(2048).is_err());
    assert_eq!(routes.updates(), 0);
}

#[test]
fn the_routing_table_is_replaced_once_for_many_changes_and_never_for_none() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes.clone(), 64);
    let all: Vec<_> = (0..64).map(|vector| (vector, Some(message(0)))).collect();
    vectors.route(&all).unwrap();
    assert_eq!(routes.updates(), 1);
    vectors.route(&all).unwrap();
    vectors.route(&[(3, None), (4, None)]).unwrap();
    vectors.route(&[(3, Some(message(0)))]).unwrap();
    assert_eq!(routes.updates(), 1, "masking is no change of the table");
    vectors.route(&[(4, Some(message(1))), (5, None)]).unwrap();
    assert_eq!(routes.updates(), 2);
    drop(vectors);
    assert_eq!(routes.updates(), 3);
    drop(Vectors::new(routes.clone(), 64));
    assert_eq!(routes.updates(), 3);
}

#[test]
fn interrupts_that_were_given_back_are_used_again() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let gsi = |vectors: &Vectors| vectors.get(0).unwrap().gsi;
    let [kept, given_back] = [1, 2].map(|count| Vectors::new(routes.clone(), count));
    kept.route(&[(0, Some(message(0)))]).unwrap();
    given_back
        .route(&[(0, Some(message(0))), (1, Some(message(1)))])
        .unwrap();
    let free = gsi(&given_back);
    assert_ne!(free, gsi(&kept));
    drop(given_back);
    let next = Vectors::new(routes, 1);
    next.route(&[(0, Some(message(1)))]).unwrap();
    assert_eq!(gsi(&next), free);
}

#[test]
fn vectors_that_are_gone_interrupt_no_more() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes.clone(), 1);
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    let of_the_device = vectors.get(0).unwrap().eventfd.try_clone().unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 0, 1);
    drop(vectors);
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 0, 1);
    // Nor does the one that has its place now.
    let next = Vectors::new(routes, 1);
    next.route(&[(0, Some(message(1)))]).unwrap();
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 1, 0);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn more_vectors_than_kvm_has_routes_are_refused_and_do_not_harm_the_others() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let gsis: Vec<_> = (0..4056).map(|_| routes.allocate().unwrap()).collect();
    let vectors = Vectors::new(routes.clone(), 1);
    let refused = vectors.route(&[(0, Some(message(0)))]).unwrap_err();
    assert!(refused.to_string().contains("4096"), "{refused}");
    // And as many as are handed out KVM does take.
    routes
        .set(gsis.iter().map(|&gsi| (gsi, message(0))))
        .unwrap();
    routes.release(&gsis[..1]);
    vectors.route(&[(0, Some(message(0)))]).unwrap();
}

#[test]
fn a_pulse_of_a_wire_interrupts_by_its_pin_whatever_else_is_routed() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    wire_pin(&guest, 4, VECTOR[0].into());
    let line = routes.line(4).unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    line.pulse().unwrap();
    comes_exactly(&started, 0, 1);
    let vectors = Vectors::new(routes, 1);
    vectors.route(&[(0, Some(message(1)))]).unwrap();
    line.pulse().unwrap();
    comes_exactly(&started, 0, 2);
    assert_eq!(started.quadword(COUNT[1]), 0);
    assert_eq!(started.stop(), Stop::Asked);
}
