//! Get Features and Set Features (Base, 5.15 and 5.27; NVM, 4.1.4).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Controller, Refused, events::config, logs::TEMPERATURE};
use crate::{
    moderation::Moderation,
    nvme::{
        data::{self, Data},
        namespace::Namespace,
        spec::{Command, NSID_ALL, Status, feature},
    },
};

/// The unit of the Aggregation Time (Base, feature 08h).
const COALESCING_UNIT: Duration = Duration::from_micros(100);

/// Values that a host can set, as after power-on.
#[derive(Clone, Debug)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    /// Over and under thresholds of the composite temperature, in kelvins.
    temperature: [u32; 2],
    error_recovery: u32,
    write_cache: bool,
    coalescing: u32,
    /// Vectors whose coalescing is off.
    vectors: Vec<u16>,
    write_atomicity: u32,
    pub(super) async_event: u32,
    keep_alive: u32,
    /// By namespace.
    reservation_masks: BTreeMap<u32, u32>,
    /// Number of Queues was set; it is fixed then.
    queues: Option<u32>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 0,
            power: 0,
            temperature: [343, 0],
            error_recovery: 0,
            write_cache: true,
            coalescing: 0,
            vectors: Vec::new(),
            write_atomicity: 0,
            async_event: 0,
            keep_alive: 0,
            reservation_masks: BTreeMap::new(),
            queues: None,
        }
    }
}

impl Features {
    /// Whether the temperature is over the one threshold or under the other (Base, feature 04h).
    pub(super) fn is_temperature_critical(&self) -> bool {
        let [over, under] = self.temperature;
        u32::from(TEMPERATURE) >= over || u32::from(TEMPERATURE) <= under
    }
}

/// Kinds of reservation notification that can be masked (Base, feature 82h): registration preempted, reservation released,
/// reservation preempted.
const RESERVATION_KINDS: u32 = 0b1110;

/// Changeable, and not per namespace; nothing is saveable (Base, figure 176, dword 0 for Select = 3).
const CHANGEABLE: u32 = 1 << 2;
const PER_NAMESPACE: u32 = 1 << 1;

/// Features of a controller, and the scope of each as in its log page (Base, figure 246): 1 namespace, 2 controller.
pub(super) const SUPPORTED: &[(u8, u32)] = &[
    (feature::ARBITRATION, 2),
    (feature::POWER, 2),
    (feature::TEMPERATURE, 2),
    (feature::ERROR_RECOVERY, 2),
    (feature::WRITE_CACHE, 2),
    (feature::NUM_QUEUES, 2),
    (feature::COALESCING, 2),
    (feature::VECTOR, 2),
    (feature::WRITE_ATOMICITY, 2),
    (feature::ASYNC_EVENT, 2),
    (feature::KEEP_ALIVE, 2),
    (feature::COMMAND_SET_PROFILE, 2),
    (feature::HOST_ID, 2),
    (feature::RESERVATION_MASK, 1),
    (feature::RESERVATION_PERSIST, 1),
];

impl Controller {
    fn num_queues(&self) -> u32 {
        let last = u32::from(self.options.max_io_queues) - 1;
        last << 16 | last
    }

    /// The value of a feature in `features`.
    fn value(&self, features: &Features, command: &Command) -> Result<u32, Refused> {
        #[expect(clippy::cast_possible_truncation, reason = "the identifier is the low byte")]
        let id = command.cdw10 as u8;
        let vector = command.cdw11 & 0xffff;
        Ok(match id {
            feature::ARBITRATION => features.arbitration,
            feature::POWER => features.power,
            feature::TEMPERATURE => {
                let under = command.cdw11 >> 20 & 3;
                // The composite sensor is the only one.
                let sensor = command.cdw11 >> 16 & 0xf;
                let value = features.temperature.get(under as usize).filter(|_| sensor == 0);
                *value.ok_or(Status::INVALID_FIELD)?
            }
            feature::ERROR_RECOVERY => features.error_recovery,
            feature::WRITE_CACHE => u32::from(features.write_cache),
            feature::NUM_QUEUES => features.queues.unwrap_or(self.num_queues()),
            feature::COALESCING => features.coalescing,
            feature::VECTOR if vector <= u32::from(self.options.max_io_queues) => {
                let off = features.vectors.iter().any(|&off| u32::from(off) == vector);
                vector | u32::from(off) << 16
            }
            feature::WRITE_ATOMICITY => features.write_atomicity,
            feature::ASYNC_EVENT => features.async_event,
            feature::KEEP_ALIVE => features.keep_alive,
            feature::COMMAND_SET_PROFILE => 0,
            feature::RESERVATION_MASK => {
                let namespace = self.subsystem.namespace(command.nsid).ok_or(Status::INVALID_NAMESPACE)?;
                features.reservation_masks.get(&namespace.nsid).copied().unwrap_or(0)
            }
            feature::RESERVATION_PERSIST => {
                let namespace = self.subsystem.namespace(command.nsid).ok_or(Status::INVALID_NAMESPACE)?;
                u32::from(namespace.reservations.persists())
            }
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// How interrupts of I/O completion queues on a vector are to be held back (Base, features 08h and 09h). Never those of the
    /// admin queue.
    #[must_use]
    pub fn moderation(&self, vector: u16) -> Option<Moderation> {
        let (time, threshold) = (self.features.coalescing >> 8, self.features.coalescing & 0xff);
        // No delay, or one completion is enough; or the host wants none for this vector.
        if time == 0 || threshold == 0 || self.features.vectors.contains(&vector) {
            return None;
        }
        Some(Moderation { completions: threshold + 1, time: COALESCING_UNIT * time })
    }

    pub(super) fn get_features(&mut self, command: &Command, data: &impl Data) -> Result<u32, Refused> {
        let id = command.cdw10 & 0xff;
        let (_, scope) =
            SUPPORTED.iter().find(|(known, _)| u32::from(*known) == id).ok_or(Status::INVALID_FIELD)?;
        let select = command.cdw10 >> 8 & 7;
        if id == u32::from(feature::HOST_ID) && select <= 2 {
            let id = if select == 0 { self.link.host_id() } else { [0; 16] };
            // EXHID: 16 bytes, else 8 (Base, 5.27.1.25).
            let len = if command.cdw11 & 1 == 1 { 16 } else { 8 };
            data::store(data, command, &id[..len])?;
            return Ok(0);
        }
        match select {
            0 => self.value(&self.features, command),
            // Nothing is saved, so what is saved is the default.
            1 | 2 => self.value(&Features::default(), command),
            3 => Ok(CHANGEABLE | if *scope == 1 { PER_NAMESPACE } else { 0 }),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    pub(super) fn set_features(&mut self, command: &Command, data: &impl Data) -> Result<u32, Refused> {
        #[expect(clippy::cast_possible_truncation, reason = "the identifier is the low byte")]
        let id = command.cdw10 as u8;
        let value = command.cdw11;
        if !SUPPORTED.iter().any(|(known, _)| *known == id) {
            return Err(Status::INVALID_FIELD);
        }
        // SV: nothing can be saved.
        if command.cdw10 >> 31 == 1 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let features = &mut self.features;
        match id {
            feature::ARBITRATION => features.arbitration = value,
            // One power state.
            feature::POWER if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            feature::POWER => features.power = value & 0xff,
            feature::TEMPERATURE => {
                let (under, sensor) = (value >> 20 & 3, value >> 16 & 0xf);
                // 0xf stands for all sensors, of which there is one.
                if under > 1 || !matches!(sensor, 0 | 0xf) {
                    return Err(Status::INVALID_FIELD);
                }
                features.temperature[under as usize] = value & 0xffff;
                self.tell_temperature();
            }
            // DULBE needs namespaces that can tell deallocated blocks.
            feature::ERROR_RECOVERY if value & 1 << 16 != 0 => return Err(Status::INVALID_FIELD),
            feature::ERROR_RECOVERY => features.error_recovery = value & 0xffff,
            feature::WRITE_CACHE => {
                features.write_cache = value & 1 == 1;
                self.link.set_write_through(!features.write_cache);
            }
            feature::NUM_QUEUES => return self.set_num_queues(value),
            feature::COALESCING => features.coalescing = value & 0xffff,
            feature::VECTOR => return self.set_vector(value),
            feature::WRITE_ATOMICITY => features.write_atomicity = value & 1,
            feature::ASYNC_EVENT => {
                features.async_event = value & config::ALL;
                self.tell_temperature();
            }
            feature::KEEP_ALIVE => features.keep_alive = value,
            feature::HOST_ID => return self.set_host_id(command, data),
            // There is one combination, that of the NVM command set alone.
            feature::COMMAND_SET_PROFILE if value & 0x1ff != 0 => return Err(Status::COMMAND_SET_REJECTED),
            feature::COMMAND_SET_PROFILE => {}
            feature::RESERVATION_MASK => return self.set_reservation_mask(command),
            _ => return self.set_persistence(command),
        }
        Ok(0)
    }

    /// Fixed once set, and as long as I/O queues exist; asking for more than there are gives what there is.
    fn set_num_queues(&mut self, value: u32) -> Result<u32, Refused> {
        let (submission, completion) = (value & 0xffff, value >> 16);
        if submission == 0xffff || completion == 0xffff {
            return Err(Status::INVALID_FIELD);
        }
        if !self.link.queues().is_empty() {
            return Err(Status::SEQUENCE_ERROR);
        }
        let all = self.num_queues();
        self.features.queues = Some(all);
        Ok(all)
    }

    fn set_vector(&mut self, value: u32) -> Result<u32, Refused> {
        let vector = u16::try_from(value & 0xffff).unwrap_or(u16::MAX);
        if vector > self.options.max_io_queues {
            return Err(Status::INVALID_FIELD);
        }
        let off = value & 1 << 16 != 0;
        // The admin queue's vector is never coalesced (Base, 5.27.1.6).
        if vector == 0 && !off {
            self.features.vectors.retain(|&other| other != 0);
            return Ok(0);
        }
        self.features.vectors.retain(|&other| other != vector);
        if off {
            self.features.vectors.push(vector);
        }
        Ok(0)
    }

    fn set_host_id(&mut self, command: &Command, data: &impl Data) -> Result<u32, Refused> {
        let extended = command.cdw11 & 1 == 1;
        let mut id = [0; 16];
        data::fetch(data, command, &mut id[..if extended { 16 } else { 8 }])?;
        if id == [0; 16] {
            return Err(Status::INVALID_FIELD);
        }
        let old = self.link.host_id();
        // It may be changed only while it is zero (Base, 5.27.1.25).
        if old != [0; 16] && old != id {
            return Err(Status::SEQUENCE_ERROR);
        }
        self.link.set_host_id(id);
        Ok(0)
    }

    /// The namespaces that a feature of theirs is set for.
    fn chosen(&self, nsid: u32) -> Result<Vec<Arc<Namespace>>, Refused> {
        if nsid == NSID_ALL {
            return Ok(self.subsystem.namespaces());
        }
        Ok(vec![self.subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?])
    }

    fn set_reservation_mask(&mut self, command: &Command) -> Result<u32, Refused> {
        for namespace in self.chosen(command.nsid)? {
            self.features.reservation_masks.insert(namespace.nsid, command.cdw11 & RESERVATION_KINDS);
        }
        self.link.mask_notifications(self.features.reservation_masks.clone());
        Ok(0)
    }

    /// Tells an event while a threshold says that it is too warm or too cold, if the host wants to know.
    fn tell_temperature(&mut self) {
        if self.features.is_temperature_critical() {
            self.events.temperature_critical();
        }
    }

    fn set_persistence(&mut self, command: &Command) -> Result<u32, Refused> {
        let on = command.cdw11 & 1 == 1;
        let namespaces = self.chosen(command.nsid)?;
        if namespaces.iter().all(|namespace| namespace.reservations.set_persists(on)) {
            Ok(0)
        } else {
            Err(Status::FEATURE_NOT_CHANGEABLE)
        }
    }
}
