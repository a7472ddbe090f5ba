//! Seeds: inputs that reach what matters, from which fuzzers go on.

/// Seeds of a target.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "version" => versions(),
        "framing" => vec![
            vec![255, 0, 1, 0, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 9, 0],
            vec![1, 0, 1, 0, 4, 0, 1, 2, 3, 4, 9, 0, 0, 2, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 3, 0],
            vec![16, 210, 1, 0, 2, 0, 7, 7, 255, 255, 255, 0, 1, 0],
            vec![7, 250, 1, 0, 0, 0, 3, 0, 0],
        ],
        "config_space" | "function" => vec![
            // Command, BAR sizing, MSI-X enable, function-level reset, power state, the window capability.
            vec![0, 4, 2, 6, 0, 0, 0x10, 4, 255, 255, 255, 255, 5, 0x10, 4],
            (0x40..0xff).flat_map(|at| [0, at, 2, 0xff, 0x80]).collect(),
            (0..0x40).flat_map(|at| [0, at, 1, 0xff, 5, at, 4]).collect(),
            vec![6, 0xe0, 1, 0, 6, 200, 16, 7, 0],
        ],
        "windows" => vec![
            vec![0, 1, 1, 1, 0, 2, 1, 1, 11, 1, 0, 1, 0, 6, 1, 1],
            vec![0, 1, 1, 0, 11, 1, 16, 0, 0, 11, 1, 0, 32, 1, 10, 9, 11, 1, 1, 0, 0],
            (0..16).flat_map(|page| [0, page, 1, 1, 10]).chain([6, 0, 15, 11, 3, 3, 3, 3]).collect(),
        ],
        "rings" => (0..8).map(|form| rings(form, form)).chain([rings(18, 2), rings(255, 7)]).collect(),
        // Reads, writes, zeroes and whatever else, with few or many cuts.
        "blk" => {
            (0..8_u8).map(|kind| bytes(kind * 31, 200)).chain([vec![70, 0, 8, 0, 0, 255, 255]]).collect()
        }
        "scsi" => (0..27_u8).map(|code| [&[0, code, 1, 0, 4, 0, 8], &bytes(code, 90)[..]].concat()).collect(),
        "conversation" => conversations(),
        "front_door" => requests(),
        "nvme" => nvme(),
        _ => Vec::new(),
    }
}

/// Bytes without a plan, but the same each time.
fn bytes(seed: u8, len: u32) -> Vec<u8> {
    (0..len).map(|at| ((at + u32::from(seed) * 7919).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A ring of some form: three descriptors that are a chain, a head, an index, a pass, and what the bytes make of it.
fn rings(form: u8, bits: u8) -> Vec<u8> {
    let descriptor = |at: u8, flags: u8, next: u8| [0, 0, at, 0, 0, 1, 16, flags, 128, next, 0];
    let chain = [descriptor(0, 1, 1), descriptor(1, 3, 2), descriptor(2, 2, 0)].concat();
    let offer = [6, 0, 0, 0, 0, 8, 1, 10, 13, 3, 1, 0, 0, 0, 14, 15, 8, 2, 11];
    [&[form, bits][..], &chain, &offer, &bytes(form, 64)].concat()
}

fn versions() -> Vec<Vec<u8>> {
    let texts = [
        "",
        "{}\0",
        "{\"capabilities\":{}}\0",
        "{\"capabilities\": {\"pgsizes\": 4096, \"max_msg_fds\": 16, \"max_dma_maps\": 65535, \"max_data_xfer_size\": 1048576, \
         \"migration\": {\"max_bitmap_size\": 268435456, \"pgsize\": 4096}, \"write_multiple\": true}}\0",
        "{\"capabilities\":{\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}\0",
        "{\"capabilities\":{\"max_msg_fds\":-1}}\0",
        "{\"capabilities\":[1,2,{\"a\":null}]}\0",
    ];
    texts.iter().map(|text| [&[0, 0, 1, 0], text.as_bytes()].concat()).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":"a\u00e9","byte":255,"flag":true}}"#,
        r#"{"id":"x","method":"echo","params":{"text":"","word":65535,"long":4294967295,"huge":18446744073709551615}}"#,
        r#"{"id":1.50e1,"method":"echo","params":{"text":"t","signed":-2147483648,"size":8192.0,"word":1e3}}"#,
        r#"{"id":null,"method":"echo","params":{"text":"t","uuid":"5f1b9c9e-0000-4000-8000-0123456789ab","choice":"wb"}}"#,
        r#"{"id":2,"method":"echo","params":{"text":"t","inner":{"tag":7},"list":["a","b"],"any":[{"x":null}]}}"#,
        r#"{"id":2,"method":"relaxed","params":{"text":"t","other":[1,2],"other":3}} {"method":"none"}"#,
        r#"[{"id":1,"method":"later","params":{"text":"\ud83d\ude00"}},{"method":"none","params":null},3,{"id":2,"method":"none","params":{}}]"#,
        r#"{"id":3,"method":"rpc_get_methods","params":{"current":true}}[]{"id":4,"method":"nothing"}nul"#,
        r#"{"id":5,"id":6,"method":"echo"}{"jsonrpc":"1.0","id":7,"method":"none"}{"id":true,"method":"none"}"#,
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]",
        "\"\\u0000\" 12 -0.5e-7 true\t{}\r\n// comment",
    ];
    texts.iter().map(|text| [&[7], text.as_bytes()].concat()).collect()
}

fn conversations() -> Vec<Vec<u8>> {
    let zeroes = vec![0; 64];
    let every_command = (0..16).flat_map(|kind| [kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).collect();
    let running: Vec<u8> = [
        &[0, 0, 5][..],
        // Five descriptors, one chain of three available, and a read of sector 0.
        &[
            0, 0, 0, 16, 0, 1, 1, 0x20, 0, 0, 0, 2, 3, 2, 0x60, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0,
        ],
        &[0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 1, 8, 0, 0x30, 1, 2, 0, 0, 0, 0, 0],
    ]
    .concat();
    let pseudo: Vec<u8> = (0_u32..512).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![zeroes, every_command, running, pseudo]
}

fn nvme() -> Vec<Vec<u8>> {
    let command = |opcode: u8| vec![1, 0, opcode, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ring = vec![1, 5];
    let every_command = [0].into_iter().chain((0..16).flat_map(command)).chain(ring.clone()).collect();
    let queues = vec![1, 1, 11, 2, 11, 3, 11, 0, 5, 1, 5, 2, 8, 4, 0, 13, 0, 14, 3, 4, 0, 5];
    let lists: Vec<u8> =
        [0].into_iter().chain((0..6).flat_map(|nth| [1, 10, nth, 8, nth * 40, 0, nth, 0, nth])).collect();
    let pseudo =
        |from: u32| (from..from + 700).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![every_command, queues, [lists, command(2), ring].concat(), pseudo(0), pseudo(5000), pseudo(90000)]
}
