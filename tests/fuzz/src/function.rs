//! Accesses to a whole PCI function: configuration space, BARs, MSI-X table and pending bits, and the capability that
//! is a window from the one into the others.

use std::sync::Arc;

use vfu::{
    device::{Bus, DeviceModel, Mappable, Progress},
    function::Function,
    pci::Layout,
    wire::spec::region,
};

use crate::{choices::Choices, config_space};

/// A device that checks what it is asked.
struct Model {
    layout: Layout,
    memory: Vec<u8>,
    resets: u32,
}

const BAR_LEN: usize = 0x4000;

impl DeviceModel for Model {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == 0 {
            let at = usize::try_from(offset).expect("inside the BAR");
            data.copy_from_slice(&self.memory[at..at + data.len()]);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 0 {
            let at = usize::try_from(offset).expect("inside the BAR");
            self.memory[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn mappable(&self, _bar: u8) -> Option<Mappable<'_>> {
        None
    }

    fn window_cap(&self) -> Option<usize> {
        Some(1)
    }

    fn sync(&mut self) {}

    fn reset(&mut self) {
        self.resets += 1;
    }

    fn progress(&mut self) -> Progress {
        Progress::Done
    }

    fn is_faulted(&self) -> bool {
        false
    }

    fn place(&mut self, _reactors: &[reactor::Handle]) {}

    fn move_queue(&mut self, _queue: u16, _to: &reactor::Handle) -> bool {
        false
    }
}

pub(super) fn run(input: &[u8]) {
    let bus = Arc::new(Bus::new(5));
    let layout = config_space::layout();
    let model = Model { layout, memory: vec![0; BAR_LEN], resets: 0 };
    let mut function = Function::new(Arc::clone(&bus), Box::new(model));
    let mut choices = Choices::new(input);
    while !choices.is_empty() {
        let kind = choices.u8();
        let index = match kind >> 5 {
            0..4 => region::CONFIG,
            _ => u32::from(choices.u8() % 10),
        };
        let size = function.region_size(index);
        let len = usize::from(choices.u8() % 17).min(usize::try_from(size).unwrap_or(0));
        let room = size - len as u64;
        // What the front door checks before it calls: inside the region.
        let offset = match choices.u8() {
            low @ 0..200 => u64::from(low).min(room),
            _ => (choices.u64() % (room + 1)).min(room),
        };
        match kind & 15 {
            0..9 => {
                let mut data = [0; 16];
                let from = choices.bytes(len);
                data[..from.len()].copy_from_slice(from);
                function.write(index, offset, &data[..len]);
            }
            9..13 => function.read(index, offset, &mut [0; 16][..len]),
            13 => bus.irqs.raise_isr(choices.u8()),
            14 => bus.irqs.raise_vector(choices.u16()),
            _ => function.reset(),
        }
    }
    let mut id = [0; 4];
    function.read(region::CONFIG, 0, &mut id);
    assert_eq!(id, [0xf4, 0x1a, 0x42, 0x10]);
}
