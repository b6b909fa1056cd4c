//! The keyboard and the mouse of L1, or of the guest that has the USB controller they are on. QEMU gives input to the keyboard
//! and the mouse that were made, or woken by a driver, last.

use serde_json::{Value, json};

use crate::error::Result;
use crate::host::Host;

impl Host {
    /// Presses keys one after the other and lets each go, by their names in QEMU's `QKeyCode`: "a", "shift", "ret".
    pub(crate) fn press(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let keys = json!([{ "type": "qcode", "data": key }]);
            self.monitor("send-key", &json!({ "keys": keys }))?;
        }
        Ok(())
    }

    /// Moves the mouse by so much to the right and down.
    pub(crate) fn move_mouse(&self, right: i32, down: i32) -> Result<()> {
        let by = |axis: &str, value: i32| json!({ "type": "rel", "data": { "axis": axis, "value": value } });
        self.input(&json!([by("x", right), by("y", down)]))
    }

    /// Presses a mouse button and lets it go, by its name in QEMU's `InputButton`: "left", "middle", "right".
    pub(crate) fn click(&self, button: &str) -> Result<()> {
        for down in [true, false] {
            let data = json!({ "button": button, "down": down });
            self.input(&json!([{ "type": "btn", "data": data }]))?;
        }
        Ok(())
    }

    fn input(&self, events: &Value) -> Result<()> {
        self.monitor("input-send-event", &json!({ "events": events }))
            .map(drop)
    }
}
