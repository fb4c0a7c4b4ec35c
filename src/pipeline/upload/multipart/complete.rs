//! The two ends of a multipart upload: Complete makes the object, Abort gives the parts up.
//!
//! Complete's answer is the commit point of a backup. S3 may answer 200 and say in the body that it failed, and it may
//! break off: only a whole result counts. Whoever lost an answer asks again, and S3 answers a repeat as it did the
//! first. A store that then does not know the upload may have made the object or may not, which is no success.
//!
//! Abort is the only request of this agent that deletes, and without an upload in its query it would delete an object:
//! so its URL has to be about the same upload of the same object as Complete's ([`ends_of_one_upload`]).

use super::{Completable, Stored};
use crate::model::Multipart;
use crate::pipeline::spool::Sealed;
use crate::pipeline::upload::send::{Answer, Method, Sender, read_bounded};
use crate::pipeline::upload::url::Destination;
use crate::pipeline::upload::{Fault, UploadError, judge};
use crate::secret::Secret;

/// What the body of a successful Complete ends with.
const RESULT: &str = "</CompleteMultipartUploadResult>";

/// Makes the object of the parts.
pub(in crate::pipeline) fn complete(
    sender: &Sender<'_>,
    multipart: &Multipart,
    parts: Completable,
) -> Result<Stored, UploadError> {
    let destination = parse(sender, &multipart.complete_url)?;
    let request = Sealed::of(request(&parts.etags).into_bytes());
    let mut lost = false;
    let max = sender.uploader().timing.tries.max_part;
    sender.repeat(&destination.shown, multipart.expires_at_ms, max, || {
        sender.once(Method::Post, &destination, &request, &|_| (), &accept).map_err(|fault| {
            let gone = matches!(&fault, Fault::Refused { status: 404, .. });
            let fault = if gone && lost { Fault::Unsure } else { fault };
            lost |= !matches!(fault, Fault::Net(_) | Fault::Tls { .. });
            fault
        })
    })?;
    Ok(Stored { size_bytes: parts.size_bytes, sha256: parts.sha256 })
}

/// Tells the store to forget the parts. That it knows none is as good.
pub(in crate::pipeline) fn abort(
    sender: &Sender<'_>,
    multipart: &Multipart,
) -> Result<(), UploadError> {
    let destination = parse(sender, &multipart.abort_url)?;
    let complete = parse(sender, &multipart.complete_url)?;
    ends_of_one_upload(&complete, &destination)
        .map_err(|fault| UploadError::new(&destination.shown, 0, fault))?;
    let nothing = Sealed::of(Vec::new());
    let max = sender.uploader().timing.tries.max;
    sender.repeat(&destination.shown, multipart.expires_at_ms, max, || {
        match sender.once(Method::Delete, &destination, &nothing, &|_| (), &|_| Ok(())) {
            Err(Fault::Refused { status: 404, .. }) => Ok(()),
            result => result,
        }
    })
}

/// Fails if the abort could be about anything but the upload that Complete is about.
pub(in crate::pipeline::upload) fn ends_of_one_upload(
    complete: &Destination,
    abort: &Destination,
) -> Result<(), Fault> {
    let place = |of: &Destination| (of.uri.scheme().cloned(), of.uri.authority().cloned());
    if place(complete) != place(abort) || complete.uri.path() != abort.uri.path() {
        return Err(Fault::Url {
            problem: "for the abort leads to another object than the one that completes",
        });
    }
    match (upload_id(complete), upload_id(abort)) {
        (Some(one), Some(same)) if one == same => Ok(()),
        _ => Err(Fault::Url {
            problem: "for the abort does not name the upload that the other one completes",
        }),
    }
}

/// The query's only `uploadId`, as it is written.
fn upload_id(destination: &Destination) -> Option<&str> {
    let pairs = destination.uri.query()?.split('&');
    let mut ids = pairs.filter_map(|pair| pair.strip_prefix("uploadId="));
    ids.next().filter(|id| !id.is_empty() && ids.next().is_none())
}

fn parse(sender: &Sender<'_>, url: &Secret) -> Result<Destination, UploadError> {
    Destination::parse(url, sender.uploader().policy)
        .map_err(|fault| UploadError::new("", 0, fault))
}

fn accept(answer: &mut Answer) -> Result<(), Fault> {
    let status = answer.status().as_u16();
    let text = read_bounded(answer.body_mut().as_reader());
    result(status, &text)
}

/// What a 2xx with this body is.
fn result(status: u16, body: &str) -> Result<(), Fault> {
    if body.contains("<Error") {
        return Err(judge::hidden_refusal(status, body));
    }
    if body.contains(RESULT) {
        return Ok(());
    }
    Err(Fault::Protocol("it confirms no object"))
}

/// The body of Complete.
fn request(etags: &[String]) -> String {
    let mut xml = String::from("<CompleteMultipartUpload>");
    for (number, etag) in (1..).zip(etags) {
        let etag = etag.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        xml.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
    }
    xml.push_str("</CompleteMultipartUpload>");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::upload::UrlPolicy;

    #[test]
    fn parts_in_order_with_their_tags_as_they_came() {
        let etags = ["\"a1\"".to_owned(), "<&>".to_owned()];
        assert_eq!(
            request(&etags),
            "<CompleteMultipartUpload>\
             <Part><PartNumber>1</PartNumber><ETag>\"a1\"</ETag></Part>\
             <Part><PartNumber>2</PartNumber><ETag>&lt;&amp;&gt;</ETag></Part>\
             </CompleteMultipartUpload>"
        );
    }

    #[test]
    fn an_abort_is_about_the_upload_that_completes() {
        let parse =
            |url: &str| Destination::parse(&Secret::new(url), UrlPolicy::AllowHttp).unwrap();
        let complete = "https://s.example/b/k?X-Amz-Date=1&uploadId=a%2Fb&X-Amz-Signature=5ec7e7";
        let judge = |abort: &str| ends_of_one_upload(&parse(complete), &parse(abort));
        judge("https://s.example/b/k?uploadId=a%2Fb&X-Amz-Signature=7").unwrap();
        for bad in [
            "https://s.example/b/k",
            "https://s.example/b/k?X-Amz-Signature=7",
            "https://s.example/b/k?uploadId=",
            "https://s.example/b/k?uploadId=c",
            "https://s.example/b/k?UploadId=a%2Fb",
            "https://s.example/b/k?uploadId=a%2Fb&uploadId=c",
            "https://s.example/b/k2?uploadId=a%2Fb",
            "https://s.example/?uploadId=a%2Fb",
            "https://t.example/b/k?uploadId=a%2Fb",
            "https://s.example:444/b/k?uploadId=a%2Fb",
            "http://s.example/b/k?uploadId=a%2Fb",
        ] {
            let fault = judge(bad).unwrap_err();
            assert!(!fault.retry() && !fault.to_string().contains("5ec7e7"), "{bad}: {fault}");
        }
        // Neither names one.
        let bare = parse("https://s.example/b/k");
        assert!(ends_of_one_upload(&bare, &parse("https://s.example/b/k")).is_err());
    }

    #[test]
    fn only_a_whole_result_is_one() {
        let whole = "<?xml?> <CompleteMultipartUploadResult xmlns=\"x\"><Key>k</Key>\
                     </CompleteMultipartUploadResult>";
        assert!(result(200, whole).is_ok());
        for (body, again) in [
            ("", true),
            ("  ", true),
            (&whole[..whole.len() - 1], true),
            ("<Error><Code>InternalError</Code></Error>", true),
            ("\n \n<Error><Code>SlowDown</Code></Error>", true),
            ("<Error><Code>InvalidPart</Code></Error>", false),
            ("<Error>", true),
        ] {
            let fault = result(200, body).unwrap_err();
            assert_eq!(fault.retry(), again, "{body}: {fault}");
        }
    }
}
