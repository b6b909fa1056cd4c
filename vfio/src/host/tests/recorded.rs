//! What machines unlike the lab say of themselves.

use crate::host::{
    Facts, Inventory, Known, NoIommuCause,
    facts::{Mapping, Trapped},
    fixture::bdf,
    recorded::{AMD, INTEL, MANY_FUNCTIONS, NO_IOMMU, Recorded, VMD},
};

fn of<'a>(inventory: &'a Inventory, name: &str) -> &'a Facts {
    let mut functions = inventory.functions.iter();
    functions.find(|f| f.device.bdf == bdf(name)).unwrap()
}

#[test]
fn a_chipset_without_acs_is_one_group() {
    let machine = Recorded::new(AMD);
    let inventory = machine.host().inventory();
    let card = of(&inventory, "2a:00.0");
    assert_eq!(card.device.iommu_group, Some(13));
    assert_eq!(card.device.interfaces[0].name, "enp42s0");
    assert!(card.device.interfaces[0].is_up);
    let members: Vec<_> = inventory.groups[&13]
        .members
        .iter()
        .map(|m| &*m.name)
        .collect();
    let expected = [
        "0000:02:00.0",
        "0000:02:00.1",
        "0000:02:00.2",
        "0000:03:09.0",
        "0000:2a:00.0",
    ];
    assert_eq!(members, expected);
    assert_eq!(inventory.groups[&13], machine.host().group(13));
    let error = machine.host().viability(bdf("2a:00.0"), &[]).unwrap_err();
    assert!(error.to_string().contains("0000:02:00.1 (ahci)"), "{error}");
}

#[test]
fn a_display_has_its_registers_rom_and_link() {
    let inventory = Recorded::new(AMD).host().inventory();
    let card = of(&inventory, "2d:00.0");
    assert!(card.device.boot_vga);
    assert_eq!(card.bars[0].size, 8 << 30);
    assert_eq!(
        card.bars[2].mapping,
        Known::Known(Mapping::Trapped(Trapped::Ports))
    );
    assert_eq!(card.rom.unwrap().size, 128 << 10);
    assert!(card.link.as_ref().unwrap().is_below_its_best());
    assert_eq!(card.interrupts.msix, Known::Known(None));
    let sound = of(&inventory, "2d:00.1");
    assert_eq!(sound.power.state.as_deref(), Some("D3hot"));
    assert_eq!(sound.interrupts.pin.known().unwrap().unwrap().letter, 'B');
    assert_eq!(sound.device.driver.as_deref(), Some("snd_hda_intel"));
}

#[test]
fn functions_behind_acs_have_groups_of_their_own() {
    let inventory = Recorded::new(INTEL).host().inventory();
    let alone = |group: &u32| inventory.groups[group].members.len() == 1;
    assert!(inventory.groups.len() > 3 && inventory.groups.keys().all(alone));
    let port = of(&inventory, "17:00.0");
    assert_eq!(port.device.numa_node, Some(0));
    let sriov = port.device.sriov.as_ref().unwrap();
    assert_eq!((sriov.total, sriov.functions.len()), (64, 0));
    assert_eq!(
        port.bars[1].mapping,
        Known::Known(Mapping::AroundMsix { withheld: 0x2000 })
    );
    assert!(
        of(&inventory, "18:00.0")
            .link
            .as_ref()
            .unwrap()
            .is_below_its_best()
    );
    assert_eq!(inventory.holders[&70], Known::Known(vec![]));
}

#[test]
fn a_volume_management_device_shares_its_group_with_what_is_behind_it() {
    let machine = Recorded::new(VMD);
    let inventory = machine.host().inventory();
    let disk = of(&inventory, "10000:e1:00.0");
    assert_eq!(disk.device.bdf.segment, 0x10000);
    assert_eq!(disk.device.iommu_group, Some(4));
    let error = machine
        .host()
        .viability(bdf("10000:e1:00.0"), &[])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("0000:00:0e.0 in the same group is bound to vmd")
    );
    let wireless = of(&inventory, "00:14.3");
    assert!(
        !wireless
            .interrupts
            .msix
            .known()
            .unwrap()
            .unwrap()
            .shares_a_page()
    );
}

#[test]
fn sixty_three_virtual_functions_know_their_number() {
    let inventory = Recorded::new(MANY_FUNCTIONS).host().inventory();
    let physical = of(&inventory, "3b:00.0");
    assert_eq!(physical.device.sriov.as_ref().unwrap().functions.len(), 63);
    let last = of(&inventory, "3b:1f.4");
    assert_eq!(last.device.virtual_function_of, Some((bdf("3b:00.0"), 62)));
    assert_eq!(
        last.device.interfaces[0].mac.unwrap().to_string(),
        "02:00:00:00:00:3e"
    );
    assert_eq!(inventory.functions.len(), 66);
}

#[test]
fn without_an_iommu_there_is_a_reason_and_all_else_is_told() {
    let inventory = Recorded::new(NO_IOMMU).host().inventory();
    assert_eq!(inventory.no_iommu, Some(NoIommuCause::IntelNotInFirmware));
    assert!(inventory.groups.is_empty());
    let disk = of(&inventory, "00:1f.2");
    assert_eq!((disk.device.iommu_group, disk.bars.len()), (None, 2));
    assert_eq!(of(&inventory, "00:02.0").device.subsystem_device, 0x1100);
}
