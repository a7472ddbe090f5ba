//! The twin socket: server-to-client commands on a connection of their own.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, dma_read_write, ours,
    wire::{cmd, version},
};

pub(super) const CASES: &[Case] = &[
    ours("made_when_asked_for", "the client end in the reply's descriptors, at fd_index", made),
    ours("dma_goes_there", "for server-to-client commands and their replies", dma),
    ours("closed_by_the_client", "the connection ends", closed),
];

fn made(kit: &Kit) -> Result<()> {
    let json = r#"{"capabilities":{"twin_socket":{"supported":true}}}"#;
    let reply = kit.connect()?.ask(cmd::VERSION, &version(json))?;
    ensure!(reply.fds.len() == 1, "{} descriptors", reply.fds.len());
    Ok(())
}

fn dma(kit: &Kit) -> Result<()> {
    let answered = dma_read_write::round_trip_twin(kit)?;
    ensure!(answered > 50, "{answered} commands on the twin socket");
    Ok(())
}

fn closed(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    let json = r#"{"capabilities":{"twin_socket":{"supported":true}}}"#;
    drop(wire.ask(cmd::VERSION, &version(json))?);
    wire.is_closed()
}
