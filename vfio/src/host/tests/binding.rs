//! Taking and giving back on a machine whose kernel can stop at every step.

use std::{
    fs,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use devices::pci::Bdf;

use crate::host::{
    BindOptions, BindingError, Host, JournalError, Outcome, StepError,
    fixture::{Fixture, Function, bdf, function},
};

fn options() -> BindOptions {
    BindOptions::default()
}

/// The one device, to that driver or the one before.
fn unbind(host: &Host, device: Bdf, driver: Option<&str>) -> Result<(), BindingError> {
    let mut unbound = host.unbind(&[device], driver).unwrap();
    unbound.remove(0).moved.map(drop)
}

/// A device on its driver, one without any, one that is reserved for its driver, one that is reserved for another; all in one
/// group.
fn four_kinds(fixture: &Fixture) -> Vec<Bdf> {
    let all = vec![
        fixture.add(function("03:10.1")),
        fixture.add(Function {
            driver: None,
            ..function("03:10.3")
        }),
        fixture.add(function("03:10.5")),
        fixture.add(function("03:10.7")),
    ];
    fixture.driver("uio_pci_generic");
    reserve(fixture, all[2], "igbvf");
    reserve(fixture, all[3], "uio_pci_generic");
    all
}

fn reserve(fixture: &Fixture, device: Bdf, driver: &str) {
    let path = format!("sys/bus/pci/devices/{device}/driver_override");
    fixture.file(&path, format!("{driver}\n"));
}

/// As if `pid` had done what this process did.
fn attribute_to(fixture: &Fixture, pid: u32) {
    fixture.process(pid, "viaduct");
    let journal = fixture.path("run/viaduct/bindings.json");
    let text = fs::read_to_string(&journal).unwrap();
    let ours = format!("\"pid\": {}", std::process::id());
    assert!(text.contains(&ours), "{text}");
    fs::write(&journal, text.replace(&ours, &format!("\"pid\": {pid}"))).unwrap();
}

type State = Vec<(Option<String>, Option<String>)>;

/// On a new machine for each operation that `act` makes: lets the process die before or after that one, and checks that
/// `restore` then brings the devices to the state that `prepare` returned. Returns how many deaths there were.
fn dies_at_every_step<T>(
    prepare: impl Fn(&Fixture, &[Bdf]) -> (State, T),
    act: impl Fn(&Host, &[Bdf], T),
) -> usize {
    let mut deaths = 0;
    for step in 0.. {
        for after in [false, true] {
            let fixture = Fixture::new();
            let devices = four_kinds(&fixture);
            let (wanted, prepared) = prepare(&fixture, &devices);
            fixture.kernel.die_at(step, after);
            act(&fixture.host(), &devices, prepared);
            if !fixture.kernel.revive() {
                return deaths;
            }
            deaths += 1;
            fixture.end_process(std::process::id());
            for restored in fixture.host().restore().unwrap() {
                assert!(matches!(restored.outcome, Outcome::Back(_)), "{restored}");
            }
            assert_eq!(
                fixture.state(&devices),
                wanted,
                "step {step}, after: {after}"
            );
            assert!(fixture.host().restore().unwrap().is_empty());
        }
    }
    unreachable!("the loop has no end")
}

#[test]
fn a_taken_device_is_on_vfio_pci_and_goes_back_to_its_driver() {
    let fixture = Fixture::new();
    let devices = four_kinds(&fixture);
    let before = fixture.state(&devices);
    let taken = fixture.host().take(&devices, &options()).unwrap();
    for &device in &devices {
        assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
    }
    taken.give_back().unwrap();
    assert_eq!(fixture.state(&devices), before);
    assert!(fixture.host().restore().unwrap().is_empty());
}

#[test]
fn dropping_what_was_taken_gives_it_back() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    drop(fixture.host().take(&[device], &options()).unwrap());
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn restore_undoes_a_take_that_died_at_any_step() {
    let untouched = |fixture: &Fixture, devices: &[Bdf]| (fixture.state(devices), ());
    let deaths = dies_at_every_step(untouched, |host, devices, ()| {
        // Dead processes drop nothing.
        let _ = host.take(devices, &options()).map(std::mem::forget);
    });
    // Four devices: journal, override, unbind (of three), probe; before and after each.
    assert_eq!(deaths, 2 * (4 * 4 - 1));
}

#[test]
fn restore_finishes_a_give_back_that_died_at_any_step() {
    let take = |fixture: &Fixture, devices: &[Bdf]| {
        let before = fixture.state(devices);
        let taken = fixture.host().take(devices, &options()).unwrap();
        (before, taken)
    };
    let deaths = dies_at_every_step(take, |_, _, taken| drop(taken.give_back()));
    // Override, unbind, bind (of three), journal; and one reservation put back at the end.
    assert_eq!(deaths, 2 * (4 * 4 - 1 + 1));
}

#[test]
fn restore_undoes_a_bind_that_died_at_any_step() {
    let untouched = |fixture: &Fixture, devices: &[Bdf]| (fixture.state(devices), ());
    let deaths = dies_at_every_step(untouched, |host, devices, ()| {
        let _ = host.bind(devices, &options());
    });
    assert_eq!(deaths, 2 * (4 * 4 - 1));
}

#[test]
fn a_restore_that_died_at_any_step_can_be_run_again() {
    let bind = |fixture: &Fixture, devices: &[Bdf]| {
        let before = fixture.state(devices);
        fixture.host().bind(devices, &options()).unwrap();
        (before, ())
    };
    let deaths = dies_at_every_step(bind, |host, _, ()| drop(host.restore()));
    assert_eq!(deaths, 2 * (4 * 4 - 1 + 1));
}

#[test]
fn an_unbind_to_another_driver_that_died_at_any_step_is_undone_or_done() {
    let mut deaths = 0;
    for step in 0.. {
        let fixture = Fixture::new();
        let device = fixture.add(function("03:10.3"));
        fixture.driver("uio_pci_generic");
        fixture.host().bind(&[device], &options()).unwrap();
        fixture.kernel.die_at(step, true);
        let _ = unbind(&fixture.host(), device, Some("uio_pci_generic"));
        if !fixture.kernel.revive() {
            break;
        }
        deaths += 1;
        fixture.host().restore().unwrap();
        let driver = fixture.driver_of(device).unwrap();
        assert!(
            ["igbvf", "uio_pci_generic"].contains(&&*driver),
            "step {step}: {driver}"
        );
    }
    assert_eq!(deaths, 6);
}

#[test]
fn a_device_that_refuses_vfio_pci_goes_back_and_so_do_those_before_it() {
    let fixture = Fixture::new();
    let devices = four_kinds(&fixture);
    let before = fixture.state(&devices);
    fixture.kernel.refuses.store(true, SeqCst);
    let error = fixture.host().take(&devices, &options()).err().unwrap();
    assert!(
        matches!(error, BindingError::Step(StepError::NotBound { .. })),
        "{error}"
    );
    assert_eq!(fixture.state(&devices), before);
    assert!(fixture.host().restore().unwrap().is_empty());
}

#[test]
fn what_was_on_vfio_pci_before_stays_there_after() {
    let fixture = Fixture::new();
    let device = fixture.add(Function {
        driver: Some("vfio-pci"),
        ..function("03:10.3")
    });
    let taken = fixture.host().take(&[device], &options()).unwrap();
    assert_eq!(taken.displaced(), []);
    taken.give_back().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
}

#[test]
fn what_was_bound_for_good_stays_bound_after_a_guest_and_is_restored_to_its_first_driver() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    host.bind(&[device], &options()).unwrap();
    host.take(&[device], &options())
        .unwrap()
        .give_back()
        .unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
    let restored = host.restore().unwrap();
    assert_eq!(restored[0].to_string(), "0000:03:10.3: back on igbvf");
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn a_guest_that_takes_what_a_dead_one_left_gives_it_back_to_the_first_driver() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    std::mem::forget(host.take(&[device], &options()).unwrap());
    attribute_to(&fixture, 4242);
    fixture.end_process(4242);
    let taken = host.take(&[device], &options()).unwrap();
    assert_eq!(taken.displaced(), [device]);
    taken.give_back().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn a_guest_without_devices_leaves_nothing_behind_that_would_need_rights() {
    let fixture = Fixture::new();
    let taken = fixture.host().take(&[], &options()).unwrap();
    taken.give_back().unwrap();
    assert!(!fixture.path("run/viaduct").exists());
}

#[test]
fn a_living_guests_device_is_not_taken_nor_unbound_nor_restored_and_it_is_named() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    let guest = BindOptions {
        guest: Some("web".into()),
        ..options()
    };
    std::mem::forget(host.take(&[device], &guest).unwrap());
    attribute_to(&fixture, 4242);
    for error in [
        host.take(&[device], &options()).err().unwrap(),
        host.bind(&[device], &options()).err().unwrap(),
        unbind(&host, device, None).err().unwrap(),
    ] {
        assert_eq!(
            error.to_string(),
            "0000:03:10.3: in use by process 4242 (viaduct, guest 'web')\n  \
             shut that guest down, or end the process:  kill 4242"
        );
    }
    let restored = host.restore().unwrap();
    assert!(matches!(&restored[0].outcome, Outcome::InUse(_)));
    assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_process_number_that_came_round_again_is_not_the_owner() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    std::mem::forget(fixture.host().take(&[device], &options()).unwrap());
    let stat = format!("proc/{}/stat", std::process::id());
    let text = fs::read_to_string(fixture.path(&stat)).unwrap();
    fixture.file(&stat, text.replace("4711", "4712"));
    fixture.host().restore().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn a_device_whose_group_another_process_has_open_is_not_taken() {
    let fixture = Fixture::new();
    let device = fixture.add(Function {
        driver: Some("vfio-pci"),
        ..function("03:10.3")
    });
    fixture.process(77, "qemu-system-x86");
    fixture.open(77, "vfio/8");
    let error = fixture.host().take(&[device], &options()).err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("in use by process 77 (qemu-system-x86)\n"),
        "{text}"
    );
}

#[test]
fn of_two_that_race_for_a_device_one_gets_it_and_the_other_learns_who() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let (a, b) = (fixture.host(), fixture.host());
    let results = thread::scope(|scope| {
        let racers = [a, b].map(|host| scope.spawn(move || host.take(&[device], &options())));
        racers.map(|racer| racer.join().unwrap())
    });
    let lost: Vec<String> = results
        .iter()
        .filter_map(|result| Some(result.as_ref().err()?.to_string()))
        .collect();
    assert_eq!(lost.len(), 1);
    assert!(lost[0].contains(&format!("process {}", std::process::id())));
}

#[test]
fn a_driver_that_does_not_let_go_is_reported_and_not_waited_for() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    fixture.kernel.sleeps.store(true, SeqCst);
    let start = Instant::now();
    let error = fixture
        .hurried_host()
        .take(&[device], &options())
        .err()
        .unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(
        matches!(error, BindingError::Step(StepError::Sleeps { .. })),
        "{error}"
    );
    // It is not tried again at once, …
    let reserved = fixture.host().driver_override(device).unwrap();
    assert_eq!(reserved.as_deref(), Some("vfio-pci"));
    // … stays in the journal while it sleeps, …
    fixture.end_process(std::process::id());
    let restored = fixture.hurried_host().restore().unwrap();
    assert!(
        matches!(restored[0].outcome, Outcome::Failed(_)),
        "{}",
        restored[0]
    );
    // … and goes back once it is awake.
    fixture.kernel.sleeps.store(false, SeqCst);
    fixture.host().restore().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
    assert!(fixture.host().restore().unwrap().is_empty());
}

#[test]
fn who_waits_too_long_for_another_viaduct_is_told_which_one() {
    let fixture = Fixture::new();
    let host = fixture.hurried_host();
    let _other = crate::host::journal::Journal::lock(&host).unwrap();
    let error = host.restore().err().unwrap();
    let JournalError::Locked { pid, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(pid, &std::process::id().to_string());
}

#[test]
fn a_device_that_went_away_is_forgotten() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    fixture.host().bind(&[device], &options()).unwrap();
    fs::remove_dir_all(fixture.path(&format!("sys/bus/pci/devices/{device}"))).unwrap();
    let restored = fixture.host().restore().unwrap();
    assert!(matches!(restored[0].outcome, Outcome::Gone));
    assert!(fixture.host().restore().unwrap().is_empty());
}

#[test]
fn a_device_that_someone_gave_to_a_third_driver_stays_there() {
    // The reservation goes if it is ours, and stays if it is theirs.
    for (reserve, remains) in [(false, None), (true, Some("uio_pci_generic"))] {
        let fixture = Fixture::new();
        let device = fixture.add(function("03:10.3"));
        let host = fixture.host();
        host.bind(&[device], &options()).unwrap();
        fixture.hand_over(device, "uio_pci_generic", reserve);
        let restored = host.restore().unwrap();
        assert_eq!(
            restored[0].to_string(),
            "0000:03:10.3: bound to uio_pci_generic in the meantime, left there"
        );
        assert_eq!(host.driver_override(device).unwrap().as_deref(), remains);
    }
}

#[test]
fn a_device_that_someone_gave_to_a_third_driver_goes_back_to_that_one() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    host.bind(&[device], &options()).unwrap();
    fixture.hand_over(device, "uio_pci_generic", false);
    fixture.file(
        "sys/bus/pci/devices/0000:03:10.3/natural",
        "uio_pci_generic\n",
    );
    host.take(&[device], &options())
        .unwrap()
        .give_back()
        .unwrap();
    assert_eq!(
        fixture.driver_of(device).as_deref(),
        Some("uio_pci_generic")
    );
}

#[test]
fn what_this_process_has_open_itself_does_not_keep_it_from_taking_or_giving_back() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let taken = fixture.host().take(&[device], &options()).unwrap();
    fixture.open(std::process::id(), "vfio/8");
    let other = fixture.add(function("03:10.5"));
    let also = fixture.host().take(&[other], &options()).unwrap();
    also.give_back().unwrap();
    taken.give_back().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn unbind_gives_back_to_the_first_driver_or_to_the_one_named_or_to_whichever_wants_it() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    fixture.driver("uio_pci_generic");

    host.bind(&[device], &options()).unwrap();
    unbind(&host, device, None).unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));

    host.bind(&[device], &options()).unwrap();
    unbind(&host, device, Some("uio_pci_generic")).unwrap();
    assert_eq!(
        fixture.driver_of(device).as_deref(),
        Some("uio_pci_generic")
    );
    assert_eq!(host.driver_override(device).unwrap(), None);
    assert!(host.restore().unwrap().is_empty());

    host.bind(&[device], &options()).unwrap();
    fs::remove_file(fixture.path("run/viaduct/bindings.json")).unwrap();
    unbind(&host, device, None).unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn unbinding_to_a_driver_that_does_not_exist_says_how_to_get_it() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    host.bind(&[device], &options()).unwrap();
    let error = unbind(&host, device, Some("igbfv"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with("0000:03:10.3: there is no driver 'igbfv'"),
        "{error}"
    );
    host.restore().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn modules_are_loaded_when_they_are_on_the_disk_and_asked_for_when_not() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    fs::remove_dir(fixture.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = fixture.host().take(&[device], &options()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "0000:03:10.3: there is no vfio-pci driver in this kernel: Module vfio-pci not found.\n  \
         install the modules of the running kernel, then, as root:  modprobe vfio-pci"
    );
    fixture.file("sys/modules/vfio-pci", "");
    let taken = fixture.host().take(&[device], &options()).unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
    // Its own driver was unloaded in the meantime.
    fs::remove_dir(fixture.path("sys/bus/pci/drivers/igbvf")).unwrap();
    fixture.file("sys/modules/igbvf", "");
    taken.give_back().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn looking_at_what_would_be_done_loads_no_module_and_says_that_one_is_needed() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let driver = fixture.path("sys/bus/pci/drivers/vfio-pci");
    fs::remove_dir(&driver).unwrap();
    fixture.file("sys/modules/vfio-pci", "");
    let host = fixture.host();
    host.check_take(&[device], &options()).unwrap();
    assert_eq!(host.plan(&[device])[0], "modprobe vfio-pci");
    assert!(!driver.exists());
    host.load_vfio(&[device]).unwrap();
    assert!(driver.exists());
}

#[test]
fn the_plan_is_what_someone_would_type_and_changes_nothing() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let before = fixture.state(&[device]);
    assert_eq!(
        fixture.host().plan(&[device, device]),
        [
            "echo vfio-pci > /sys/bus/pci/devices/0000:03:10.3/driver_override",
            "echo 0000:03:10.3 > /sys/bus/pci/drivers/igbvf/unbind",
            "echo 0000:03:10.3 > /sys/bus/pci/drivers_probe",
        ]
    );
    assert_eq!(fixture.state(&[device]), before);
}

#[test]
fn a_journal_that_is_not_ours_is_not_touched() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    for text in [
        "",
        "{}",
        r#"{"version": 2, "devices": {}}"#,
        r#"{"version": 1, "devices": {"x": {"driver": null, "driver_override": null, "owner": null}}}"#,
    ] {
        fixture.file("run/viaduct/bindings.json", text);
        let error = fixture.host().take(&[device], &options()).err().unwrap();
        assert!(
            error
                .to_string()
                .contains("is not a journal of this version"),
            "{error}"
        );
        assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
    }
}

#[test]
fn a_device_that_is_not_there_or_is_a_bridge_is_refused_whatever_the_options() {
    let fixture = Fixture::new();
    let bridge = fixture.add(Function {
        header_type: 1,
        class: 0x06_0400,
        driver: Some("pcieport"),
        ..function("00:01.0")
    });
    let force = BindOptions {
        force: true,
        ..options()
    };
    let host = fixture.host();
    let error = host.take(&[bridge], &force).err().unwrap();
    assert!(matches!(error, BindingError::Bridge(_)), "{error}");
    let error = host.take(&[bdf("03:10.3")], &force).err().unwrap();
    assert!(
        error
            .to_string()
            .starts_with("0000:03:10.3: no such device\n")
    );
}

#[test]
fn devices_are_prepared_for_others_once_they_are_bound_and_nobody_has_taken_them() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    assert!(!host.are_prepared(&[device]).unwrap());
    host.bind(&[device], &options()).unwrap();
    assert!(host.are_prepared(&[device]).unwrap());
    host.unbind(&[device], None).unwrap();
    let taken = host.take(&[device], &options()).unwrap();
    let error = host.are_prepared(&[device]).unwrap_err();
    assert!(matches!(error, BindingError::InUse { .. }), "{error}");
    drop(taken);
}
