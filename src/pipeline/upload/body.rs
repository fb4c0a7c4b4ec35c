//! The artifact on its way into a request: counted, hashed again, and never longer than it was sealed.

use std::io::{self, Read};

use ring::digest::Context;

use super::Fault;
use super::line::Exchange;
use crate::model::{Progress, Step};
use crate::pipeline::report::percent;
use crate::pipeline::spool::{Sealed, SealedReader};

/// The body of one try.
pub(super) struct Body<'a> {
    sealed: &'a Sealed,
    reader: SealedReader<'a>,
    exchange: &'a Exchange,
    progress: &'a dyn Fn(Progress),
    context: Option<Context>,
    sent: u64,
    /// As `sent`, with what was only made up behind an early answer.
    handed: u64,
    fault: Option<Fault>,
}

/// How far a body got.
#[derive(Debug)]
pub(super) enum BodyEnd {
    /// Every byte was handed over, and they were the sealed ones.
    Complete,
    /// Not every byte.
    Incomplete,
    /// It could not be read, or is not what was sealed.
    Failed(Fault),
}

impl<'a> Body<'a> {
    pub(super) fn new(
        sealed: &'a Sealed,
        exchange: &'a Exchange,
        progress: &'a dyn Fn(Progress),
    ) -> Self {
        let (reader, context) = (sealed.reader(), Some(sealed.before()));
        Self { sealed, reader, exchange, progress, context, sent: 0, handed: 0, fault: None }
    }

    pub(super) fn end(self) -> BodyEnd {
        match self.fault {
            Some(fault) => BodyEnd::Failed(fault),
            None if self.sent == self.sealed.len() => BodyEnd::Complete,
            None => BodyEnd::Incomplete,
        }
    }

    fn fail(&mut self, fault: Fault) -> io::Error {
        self.fault = Some(fault);
        // Only ends the request; the fault itself is taken from here.
        io::Error::other("the sealed artifact cannot be read")
    }

    fn next(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.sealed.len() - self.sent;
        let count = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = match self.reader.read(&mut out[..count]) {
            // A request that ends before its length would wait for ever.
            Ok(0) if left > 0 => return Err(self.fail(Fault::Changed)),
            Ok(count) => count,
            Err(error) => return Err(self.fail(Fault::Spool(error))),
        };
        if let Some(context) = &mut self.context {
            context.update(&out[..count]);
        }
        // The last bytes leave only if all of them together are what was sealed.
        if count as u64 == left
            && let Some(context) = self.context.take()
            && context.finish().as_ref() != self.sealed.sha256()
        {
            return Err(self.fail(Fault::Changed));
        }
        Ok(count)
    }
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.exchange.answered_early() {
            // The transport throws away what follows; ureq only has to get past the body to the answer.
            let left = usize::try_from(self.sealed.len() - self.handed).unwrap_or(usize::MAX);
            let count = out.len().min(left);
            self.handed += count as u64;
            return Ok(count);
        }
        let count = self.next(out)?;
        self.sent += count as u64;
        self.handed = self.sent;
        let percent = percent(self.sent, self.sealed.len(), 100);
        (self.progress)(Progress { step: Step::Uploading, percent, bytes: self.sent });
        Ok(count)
    }
}
