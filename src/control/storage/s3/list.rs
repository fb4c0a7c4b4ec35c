//! What S3 answers to `ListObjectsV2` and `ListMultipartUploads`, and nothing that only looks like it. Pure.

use super::xml::{Leaf, walk};

/// Objects that one page has at most; what we ask for.
pub(super) const PAGE: usize = 1000;
/// Largest answer with one page: keys have at most 1,024 bytes, each escaped to at most six.
pub(super) const MAX_ANSWER: u64 = 8 << 20;

/// One page of objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Keys with their sizes.
    pub objects: Vec<(String, u64)>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

/// Reads a page.
pub(super) fn objects(document: &[u8]) -> Result<Page, &'static str> {
    let mut page = Page::default();
    let (mut key, mut size, mut more, mut next) = (None, None, None, None);
    let (mut root, mut wrong) = (false, None);
    walk(document, &mut |leaf: Leaf<'_>| match leaf.path {
        "ListBucketResult/Contents/Key" => key = Some(leaf.text.to_owned()),
        "ListBucketResult/Contents/Size" => size = leaf.text.trim().parse().ok(),
        "ListBucketResult/Contents" => match (key.take(), size.take()) {
            (Some(key), Some(size)) => page.objects.push((key, size)),
            _ => wrong = Some("an object in it has no key or no size"),
        },
        "ListBucketResult/IsTruncated" => more = Some(leaf.text.trim() == "true"),
        "ListBucketResult/NextContinuationToken" => next = Some(leaf.text.to_owned()),
        "ListBucketResult" => root = true,
        _ => {}
    })?;
    if !root {
        return Err("it is not a list of objects");
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    page.next = match (more, next.filter(|token: &String| !token.is_empty())) {
        (Some(false), _) => None,
        (Some(true), Some(token)) => Some(token),
        (Some(true), None) => return Err("the list goes on, but it does not say where"),
        (None, _) => return Err("the list does not say whether it goes on"),
    };
    Ok(page)
}

/// One page of uploads that are not complete.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uploads {
    /// Keys with the uploads' ids.
    pub uploads: Vec<(String, String)>,
    /// Key and id that the next page begins behind; `None` at the end.
    pub next: Option<(String, String)>,
}

/// Reads a page of uploads.
pub(super) fn uploads(document: &[u8]) -> Result<Uploads, &'static str> {
    let mut page = Uploads::default();
    let (mut key, mut id, mut more) = (None, None, false);
    let (mut next_key, mut next_id) = (None, None);
    let (mut root, mut wrong) = (false, false);
    walk(document, &mut |leaf: Leaf<'_>| match leaf.path {
        "ListMultipartUploadsResult/Upload/Key" => key = Some(leaf.text.to_owned()),
        "ListMultipartUploadsResult/Upload/UploadId" => id = Some(leaf.text.to_owned()),
        "ListMultipartUploadsResult/Upload" => match (key.take(), id.take()) {
            (Some(key), Some(id)) => page.uploads.push((key, id)),
            _ => wrong = true,
        },
        "ListMultipartUploadsResult/IsTruncated" => more = leaf.text.trim() == "true",
        "ListMultipartUploadsResult/NextKeyMarker" => next_key = Some(leaf.text.to_owned()),
        "ListMultipartUploadsResult/NextUploadIdMarker" => next_id = Some(leaf.text.to_owned()),
        "ListMultipartUploadsResult" => root = true,
        _ => {}
    })?;
    if !root || wrong {
        return Err("it is not a list of uploads");
    }
    // One that does not say where it goes on is looked at again in an hour.
    page.next = next_key.zip(next_id).filter(|_| more);
    Ok(page)
}

/// Reads the id of an upload that was created.
pub(super) fn upload_id(document: &[u8]) -> Result<String, &'static str> {
    let mut id = None;
    walk(document, &mut |leaf: Leaf<'_>| {
        // Some leave the "Result" out of the root's name.
        let (root, name) = leaf.path.split_once('/').unwrap_or_default();
        if root.starts_with("InitiateMultipartUpload") && name == "UploadId" {
            id = Some(leaf.text.trim().to_owned());
        }
    })?;
    id.ok_or("it does not name the upload")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";

    fn read(inner: &str) -> Result<Page, &'static str> {
        objects(format!("{HEAD}{inner}</ListBucketResult>").as_bytes())
    }

    #[test]
    fn a_page_and_the_last_one() {
        let one = "<IsTruncated>true</IsTruncated><Contents><Key>a&amp;b</Key><Size>7</Size><Owner><ID>x</ID>\
                   </Owner></Contents><NextContinuationToken>t/+=</NextContinuationToken>";
        let page = read(one).unwrap();
        assert_eq!(page.objects, [("a&b".to_owned(), 7)]);
        assert_eq!(page.next.as_deref(), Some("t/+="));
        let last = read("<IsTruncated>false</IsTruncated><NextContinuationToken/>").unwrap();
        assert_eq!(last, Page::default());
    }

    #[test]
    fn uploads_and_their_ids() {
        let list = |inner: &str| {
            let root = "ListMultipartUploadsResult";
            uploads(format!("<{root}>{inner}</{root}>").as_bytes())
        };
        let one = "<Upload><Key>k</Key><UploadId>u</UploadId></Upload>";
        let page = list(one).unwrap();
        assert_eq!(page.uploads, [("k".to_owned(), "u".to_owned())]);
        assert_eq!(page.next, None);
        let more = "<IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker>\
                    <NextUploadIdMarker>b</NextUploadIdMarker>";
        assert_eq!(list(more).unwrap().next, Some(("a".to_owned(), "b".to_owned())));
        assert!(list("<Upload><Key>k</Key></Upload>").is_err());
        assert!(uploads(b"<ListBucketResult></ListBucketResult>").is_err());
        let created = "<InitiateMultipartUploadResult><UploadId>x&amp;y</UploadId>\
                       </InitiateMultipartUploadResult>";
        assert_eq!(upload_id(created.as_bytes()).unwrap(), "x&y");
        assert!(upload_id(b"<Error><Code>x</Code></Error>").is_err());
    }

    #[test]
    fn what_is_no_list_is_no_empty_list() {
        for inner in [
            "",
            "<IsTruncated>true</IsTruncated>",
            "<IsTruncated>true</IsTruncated><NextContinuationToken/>",
            "<IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>",
            "<IsTruncated>false</IsTruncated><Contents><Size>1</Size></Contents>",
            "<IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>-1</Size></Contents>",
        ] {
            assert!(read(inner).is_err(), "{inner}");
        }
        assert!(objects(b"<html><body>hello</body></html>").is_err());
        assert!(objects(b"<IsTruncated>false</IsTruncated>").is_err());
        assert!(objects(b"").is_err());
        assert!(objects(format!("{HEAD}<IsTruncated>false</IsTruncated>").as_bytes()).is_err());
    }
}
