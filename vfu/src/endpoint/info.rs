//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO: what the device is.

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::session::Reply;
use crate::{
    function::Function,
    wire::spec::{
        DeviceInfo, IrqInfo, RegionInfo, SPARSE_CAP_ID, SparseArea, SparseCap, device_flags, irq, irq_flags,
        region, region_flags,
    },
};

/// DEVICE_GET_INFO.
pub(super) fn device(payload: &[u8]) -> Result<Reply, Errno> {
    let (request, _longer) = DeviceInfo::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    let argsz = u32::try_from(size_of::<DeviceInfo>()).expect("16 bytes");
    if request.argsz < argsz {
        return Err(Errno::INVAL);
    }
    let flags = device_flags::RESET | device_flags::PCI;
    Ok(Reply::of(&DeviceInfo { argsz, flags, num_regions: region::COUNT, num_irqs: irq::COUNT }))
}

/// DEVICE_GET_REGION_INFO. A reply never exceeds what was asked for: QEMU takes a longer one for an attack. It says how
/// much there is, and clients ask again.
pub(super) fn region(function: &mut Function, payload: &[u8]) -> Result<Reply, Errno> {
    let (request, _longer) = RegionInfo::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    let fixed = size_of::<RegionInfo>();
    if (request.argsz as usize) < fixed || request.index >= region::COUNT {
        return Err(Errno::INVAL);
    }
    let size = function.region_size(request.index);
    let flags = if size == 0 { 0 } else { region_flags::READ | region_flags::WRITE };
    let mut info = RegionInfo { argsz: 32, flags, index: request.index, cap_offset: 0, size, offset: 0 };
    let mappable = u8::try_from(request.index).ok().filter(|_| size != 0 && request.index < region::NUM_BARS);
    let Some(part) = mappable.and_then(|bar| function.model_ref().mappable(bar)) else {
        return Ok(Reply::of(&info));
    };
    let cap = SparseCap { id: SPARSE_CAP_ID, version: 1, next: 0, nr_areas: 1, reserved: 0 };
    let area = SparseArea { offset: part.offset, size: part.size };
    let full = fixed + size_of_val(&cap) + size_of_val(&area);
    info.argsz = u32::try_from(full).expect("64 bytes");
    info.flags |= region_flags::MMAP | region_flags::CAPS;
    info.offset = part.fd_offset;
    if (request.argsz as usize) < full {
        // The descriptor comes with the complete answer, and QEMU takes CAPS without an offset for an error.
        info.flags &= !(region_flags::MMAP | region_flags::CAPS);
        return Ok(Reply::of(&info));
    }
    info.cap_offset = request.argsz.min(32);
    let head = [info.as_bytes(), cap.as_bytes(), area.as_bytes()].concat();
    let fd = part.fd.try_clone_to_owned().map_err(|_limit| Errno::MFILE)?;
    Ok(Reply { head, fds: vec![fd] })
}

/// DEVICE_GET_IRQ_INFO.
pub(super) fn irq(function: &mut Function, payload: &[u8]) -> Result<Reply, Errno> {
    let (request, _longer) = IrqInfo::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    let argsz = u32::try_from(size_of::<IrqInfo>()).expect("16 bytes");
    if request.argsz < argsz || request.index >= irq::COUNT {
        return Err(Errno::INVAL);
    }
    let kind = match request.index {
        irq::INTX => irq_flags::MASKABLE | irq_flags::AUTOMASKED,
        irq::MSI | irq::MSIX => irq_flags::NORESIZE,
        _ => 0,
    };
    let count = function.bus().irqs.count(request.index);
    Ok(Reply::of(&IrqInfo { argsz, flags: irq_flags::EVENTFD | kind, index: request.index, count }))
}
