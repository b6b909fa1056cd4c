//! Taking a device for which the kernel has a driver of VFIO's that was made for it.

use std::{fs, sync::atomic::Ordering::SeqCst};

use devices::pci::Bdf;

use crate::host::{
    BindOptions, BindingError,
    fixture::{Fixture, function},
};

/// A card that mlx5_vfio_pci was made for, whose module is on the disk.
fn mellanox() -> (Fixture, Bdf) {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let modalias = "pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00\n";
    fixture.file("sys/bus/pci/devices/0000:03:10.3/modalias", modalias);
    fixture.file("proc/sys/kernel/osrelease", "6.12.1-test\n");
    let aliases = "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n\
                   alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n";
    fixture.file("lib/modules/6.12.1-test/modules.alias", aliases);
    fixture.file("sys/modules/mlx5_vfio_pci", "");
    (fixture, device)
}

#[test]
fn a_device_is_taken_by_the_driver_that_was_made_for_it_and_goes_back() {
    let (fixture, device) = mellanox();
    let host = fixture.host();
    let taken = host.take(&[device], &BindOptions::default()).unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("mlx5_vfio_pci"));
    // It stays there for the next one, who is not told to take it again.
    assert_eq!(host.plan(&[device]), [""; 0]);
    taken.give_back().unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("igbvf"));
}

#[test]
fn vfio_pci_is_taken_where_it_is_asked_for_or_the_other_cannot_be_loaded_or_refuses() {
    let asked = BindOptions {
        driver: Some("vfio-pci".into()),
        ..BindOptions::default()
    };
    type Case = (BindOptions, fn(&Fixture));
    let cases: [Case; 3] = [
        (asked, |_| ()),
        (BindOptions::default(), |fixture| {
            fs::remove_file(fixture.path("sys/modules/mlx5_vfio_pci")).unwrap();
        }),
        (BindOptions::default(), |fixture| {
            fixture.kernel.refuses_variants.store(true, SeqCst);
        }),
    ];
    for (options, prepare) in cases {
        let (fixture, device) = mellanox();
        prepare(&fixture);
        fixture.host().bind(&[device], &options).unwrap();
        assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
        let restored = fixture.host().restore().unwrap();
        assert_eq!(restored[0].to_string(), "0000:03:10.3: back on igbvf");
        assert_eq!(fixture.state(&[device]), [(Some("igbvf".into()), None)]);
    }
}

#[test]
fn a_device_moves_between_drivers_of_vfio_when_another_is_asked_for() {
    let (fixture, device) = mellanox();
    let host = fixture.host();
    host.bind(&[device], &BindOptions::default()).unwrap();
    let asked = BindOptions {
        driver: Some("vfio-pci".into()),
        ..BindOptions::default()
    };
    host.bind(&[device], &asked).unwrap();
    assert_eq!(fixture.driver_of(device).as_deref(), Some("vfio-pci"));
    host.restore().unwrap();
    assert_eq!(fixture.state(&[device]), [(Some("igbvf".into()), None)]);
}

#[test]
fn a_driver_that_is_none_of_vfios_is_refused_and_nothing_changed() {
    let (fixture, device) = mellanox();
    let asked = BindOptions {
        driver: Some("igb".into()),
        ..BindOptions::default()
    };
    let error = fixture.host().bind(&[device], &asked).err().unwrap();
    assert!(matches!(error, BindingError::NotVfio { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("viaduct unbind DEV --driver igb")
    );
    assert_eq!(fixture.state(&[device]), [(Some("igbvf".into()), None)]);
}

#[test]
fn the_plan_names_the_driver_that_was_made_for_a_device_and_loads_nothing() {
    let (fixture, device) = mellanox();
    let plan = fixture.host().plan(&[device]);
    assert_eq!(
        plan,
        [
            "modprobe mlx5_vfio_pci",
            "echo mlx5_vfio_pci > /sys/bus/pci/devices/0000:03:10.3/driver_override",
            "echo 0000:03:10.3 > /sys/bus/pci/drivers/igbvf/unbind",
            "echo 0000:03:10.3 > /sys/bus/pci/drivers_probe",
        ]
    );
    assert_eq!(fixture.state(&[device]), [(Some("igbvf".into()), None)]);
}
