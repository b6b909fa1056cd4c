//! The common configuration: registers by which driver and device come to terms (virtio 1.2 §4.1.4.3, §3.1.1).
//!
//! A model without I/O: a write answers with what it amounts to. A register takes writes of its own width only (§4.1.3.1), and 64-bit
//! ones by halves; any other is ignored.

use super::{
    interrupts::Cause,
    queue::QueueRegisters,
    registers::{
        F_VERSION_1, NO_VECTOR, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
        common as at,
    },
};

/// What a write amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Effect {
    /// Nothing but registers changed.
    None,
    /// The driver wants the device as it was at power-on.
    Reset,
    /// The driver is set up: the device may begin.
    Start,
    /// The driver wants this vector for this cause. What it then has is to be told by `set_vector`.
    Vector(Cause, u16),
}

/// The registers of one device.
#[derive(Debug, Clone)]
pub(super) struct Common {
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Common {
    /// At power-on, offering these features and queues of these sizes.
    pub(super) fn new(offered: u64, queues: &[u16]) -> Self {
        Self {
            offered,
            device_feature_select: 0,
            driver_feature_select: 0,
            features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queues.iter().map(|&max| QueueRegisters::new(max)).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        let mut queues = std::mem::take(&mut self.queues);
        queues.iter_mut().for_each(QueueRegisters::reset);
        *self = Self {
            queues,
            ..Self::new(self.offered, &[])
        };
    }

    /// What the driver took of what was offered.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// The queues that are in use.
    pub(super) fn enabled(&self) -> impl Iterator<Item = (usize, &QueueRegisters)> {
        let queues = self.queues.iter().enumerate();
        queues.filter(|(_, queue)| queue.enabled)
    }

    /// The vector that `cause` got.
    pub(super) fn set_vector(&mut self, cause: Cause, vector: Option<u16>) {
        let vector = vector.unwrap_or(NO_VECTOR);
        match cause {
            Cause::Config => self.config_vector = vector,
            Cause::Queue(queue) => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.vector = vector;
                }
            }
        }
    }

    /// Reads at any width. `needs_reset` shows in the status, `generation` is the configuration's.
    pub(super) fn read(&self, offset: usize, data: &mut [u8], needs_reset: bool, generation: u8) {
        let image = self.image(needs_reset, generation);
        data.fill(0);
        let stored = image.iter().skip(offset);
        data.iter_mut()
            .zip(stored)
            .for_each(|(to, from)| *to = *from);
    }

    fn image(&self, needs_reset: bool, generation: u8) -> [u8; at::LEN] {
        let mut image = [0; at::LEN];
        let mut put = |offset: usize, value: &[u8]| {
            let place = image.iter_mut().skip(offset);
            place.zip(value).for_each(|(to, from)| *to = *from);
        };
        put(
            at::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(
            at::DEVICE_FEATURE,
            &half(self.offered, self.device_feature_select),
        );
        put(
            at::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(
            at::DRIVER_FEATURE,
            &half(self.features, self.driver_feature_select),
        );
        put(at::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(at::NUM_QUEUES, &queues.to_le_bytes());
        let reset = if needs_reset { STATUS_NEEDS_RESET } else { 0 };
        put(at::STATUS, &[self.status | reset]);
        put(at::CONFIG_GENERATION, &[generation]);
        put(at::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that is not there has a size of 0 (§4.1.4.3).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(at::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(at::QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(at::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(at::QUEUE_NOTIFY_OFFSET, &self.queue_select.to_le_bytes());
            put(at::QUEUE_DESCRIPTORS, &queue.descriptors.to_le_bytes());
            put(at::QUEUE_AVAILABLE, &queue.available.to_le_bytes());
            put(at::QUEUE_USED, &queue.used.to_le_bytes());
        }
        image
    }

    /// Writes one register.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        match *data {
            [value] if offset == at::STATUS => return self.set_status(value),
            [a, b] => return self.write_word(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
        Effect::None
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let new = value & !self.status & !STATUS_NEEDS_RESET;
        let mut taken = new;
        // §3.1.1: the bit stays clear if the device does not accept what the driver took.
        let acceptable = self.features & !self.offered == 0 && self.features & F_VERSION_1 != 0;
        if !acceptable {
            taken &= !STATUS_FEATURES_OK;
        }
        self.status |= taken;
        let has_agreed = self.status & STATUS_FEATURES_OK != 0;
        if !has_agreed {
            // A driver that goes on without features is a legacy one, and there is nothing here for it.
            self.status &= !STATUS_DRIVER_OK;
        }
        match new & STATUS_DRIVER_OK != 0 && has_agreed {
            true => Effect::Start,
            false => Effect::None,
        }
    }

    fn write_word(&mut self, offset: usize, value: u16) -> Effect {
        let select = usize::from(self.queue_select);
        let is_running = self.is_running();
        match offset {
            at::CONFIG_VECTOR => return Effect::Vector(Cause::Config, value),
            at::QUEUE_SELECT => self.queue_select = value,
            at::QUEUE_VECTOR if select < self.queues.len() => {
                return Effect::Vector(Cause::Queue(select), value);
            }
            _ => {
                if let Some(queue) = self.queues.get_mut(select).filter(|q| !q.enabled) {
                    match offset {
                        at::QUEUE_SIZE => queue.resize(value),
                        // A queue that comes once the device runs is not served (§3.1.1 wants them set up before).
                        at::QUEUE_ENABLE => queue.enabled = value == 1 && !is_running,
                        _ => {}
                    }
                }
            }
        }
        Effect::None
    }

    fn write_dword(&mut self, offset: usize, value: u32) {
        match offset {
            at::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            at::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            at::DRIVER_FEATURE if self.status & STATUS_FEATURES_OK == 0 => {
                match self.driver_feature_select {
                    0 => set_half(&mut self.features, 0, value),
                    1 => set_half(&mut self.features, 4, value),
                    _ => {}
                }
            }
            at::QUEUE_DESCRIPTORS..at::LEN => {
                let select = usize::from(self.queue_select);
                let Some(queue) = self.queues.get_mut(select).filter(|q| !q.enabled) else {
                    return;
                };
                let half = offset % 8;
                match offset - half {
                    at::QUEUE_DESCRIPTORS => set_half(&mut queue.descriptors, half, value),
                    at::QUEUE_AVAILABLE => set_half(&mut queue.available, half, value),
                    _ => set_half(&mut queue.used, half, value),
                }
            }
            _ => {}
        }
    }

    /// Whether the driver is set up.
    pub(super) fn is_running(&self) -> bool {
        self.status & STATUS_DRIVER_OK != 0
    }
}

/// The half of the features that `select` names; there are no others than these two.
fn half(features: u64, select: u32) -> [u8; 4] {
    let [a, b, c, d, high @ ..] = features.to_le_bytes();
    match select {
        0 => [a, b, c, d],
        1 => high,
        _ => [0; 4],
    }
}

/// Sets the half of a register that starts `at` bytes into it, 0 or 4; elsewhere there is none.
fn set_half(register: &mut u64, at: usize, value: u32) {
    match at {
        0 => *register = *register >> 32 << 32 | u64::from(value),
        4 => *register = *register << 32 >> 32 | u64::from(value) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
