//! What a user needs who may not open a file of VFIO's.

/// The rule by which members of a group may: the same as in resources/udev/70-viaduct.rules.
const RULE: &str = r#"SUBSYSTEM=="vfio|vfio-dev", GROUP="vfio", MODE="0660""#;

/// How to be let: for now, and for good. `path` is the file.
pub(super) fn advice(path: &str) -> String {
    format!(
        "for now:   sudo chown $USER {path}\n  \
         for good:  sudo groupadd -rf vfio; sudo usermod -aG vfio $USER; \
         echo '{RULE}' | sudo tee /etc/udev/rules.d/70-viaduct.rules; sudo udevadm control --reload; \
         sudo udevadm trigger -s vfio -s vfio-dev; then log in again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_that_is_advised_is_the_one_that_is_shipped() {
        let shipped = include_str!("../../../resources/udev/70-viaduct.rules");
        assert!(shipped.lines().any(|line| line == RULE));
        assert!(advice("/dev/vfio/8").starts_with("for now:   sudo chown $USER /dev/vfio/8\n"));
    }
}
