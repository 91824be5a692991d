//! What is remembered of pulls: `<root>/image_manager/pulled/<ID>`, one file for each image, and the names of those that have
//! begun in `pulling.json` beside it. For root alone; they hold no credentials, but who has which.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::credentials::access::PullRecord;
use longshore_core::ports::files::FilesError;
use longshore_core::ports::pulls::PullRecords;

use crate::layout::{At, Layout, part, refuse};
use crate::store::Files;
use crate::write::{self, Durability};

/// They are small files of the root folder.
const LIMIT: Duration = Duration::from_secs(30);
/// The names and Secrets that a record may have take less.
const LARGEST: u64 = 16 << 20;

fn folder(layout: &Layout) -> PathBuf {
    layout.root.join("image_manager")
}

fn of_images(layout: &Layout) -> PathBuf {
    folder(layout).join("pulled")
}

fn begun(layout: &Layout) -> PathBuf {
    folder(layout).join("pulling.json")
}

/// The record of an image.
fn place(layout: &Layout, image: &str) -> Result<PathBuf, FilesError> {
    let folder = of_images(layout);
    Ok(folder.join(part(&folder, "image ID", image)?))
}

fn make_folders(layout: &Layout) -> Result<(), FilesError> {
    write::folder(&folder(layout), 0o700)?;
    write::folder(&of_images(layout), 0o700)
}

/// What is in a file of ours; `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at(path),
    };
    let mut data = Vec::new();
    file.take(LARGEST).read_to_end(&mut data).at(path)?;
    Ok(Some(data))
}

fn write<T: serde::Serialize>(path: &Path, content: &T, durability: Durability) -> Result<(), FilesError> {
    let data = serde_json::to_vec(content).map_err(|error| refuse(path, format!("cannot be written: {error}")))?;
    write::replace_as(path, &data, 0o600, durability)
}

fn pulled(layout: &Layout, image: &str) -> Result<Option<PullRecord>, FilesError> {
    let path = place(layout, image)?;
    let Some(data) = read(&path)? else { return Ok(None) };
    let damage = match serde_json::from_slice::<PullRecord>(&data) {
        Ok(record) if record.image == image => return Ok(Some(record)),
        Ok(record) => format!("it is of {}", record.image),
        Err(error) => error.to_string(),
    };
    tracing::error!(path = %path.display(), damage, "a record of an image is damaged; pods pull the image again");
    let lost = PullRecord::lost(image);
    // In its place, or it would be told of at each start of a pod.
    if let Err(error) = write(&path, &lost, Durability::Whole) {
        tracing::debug!("{error}");
    }
    Ok(Some(lost))
}

fn pulling(layout: &Layout) -> Result<BTreeSet<String>, FilesError> {
    let path = begun(layout);
    let Some(data) = read(&path)? else { return Ok(BTreeSet::new()) };
    serde_json::from_slice(&data).map_err(|error| refuse(&path, format!("is damaged: {error}")))
}

fn forget(layout: &Layout, image: &str) -> Result<(), FilesError> {
    let path = place(layout, image)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at(&path),
        _ => Ok(()),
    }
}

/// Names of the files; what is no record is left alone.
fn images(layout: &Layout) -> Result<Vec<String>, FilesError> {
    let folder = of_images(layout);
    match std::fs::read_dir(&folder) {
        Ok(list) => {
            let names = list.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.filter(|name| place(layout, name).is_ok()).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).at(&folder),
    }
}

#[async_trait]
impl PullRecords for Files {
    async fn pulled(&self, image: &str) -> Result<Option<PullRecord>, FilesError> {
        let image = image.to_owned();
        let place = of_images(self.layout());
        self.job(format!("pulled/{image}"), &place, LIMIT, move |inner| pulled(inner.layout(), &image)).await
    }

    async fn keep_pulled(&self, record: &PullRecord) -> Result<(), FilesError> {
        let record = record.clone();
        let place = of_images(self.layout());
        self.job(format!("pulled/{}", record.image), &place, LIMIT, move |inner| {
            make_folders(inner.layout())?;
            write(&self::place(inner.layout(), &record.image)?, &record, Durability::New)
        })
        .await
    }

    async fn forget_pulled(&self, image: &str) -> Result<(), FilesError> {
        let image = image.to_owned();
        let place = of_images(self.layout());
        self.job(format!("pulled/{image}"), &place, LIMIT, move |inner| forget(inner.layout(), &image)).await
    }

    async fn all_pulled(&self) -> Result<Vec<String>, FilesError> {
        let place = of_images(self.layout());
        self.job("pulled".to_owned(), &place, LIMIT, |inner| images(inner.layout())).await
    }

    async fn pulling(&self) -> Result<BTreeSet<String>, FilesError> {
        let place = begun(self.layout());
        self.job("pulling".to_owned(), &place, LIMIT, |inner| pulling(inner.layout())).await
    }

    async fn keep_pulling(&self, names: &BTreeSet<String>) -> Result<(), FilesError> {
        let names = names.clone();
        let place = begun(self.layout());
        self.job("pulling".to_owned(), &place, LIMIT, move |inner| {
            make_folders(inner.layout())?;
            write(&begun(inner.layout()), &names, Durability::Whole)
        })
        .await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use longshore_core::credentials::access::Owner;
    use longshore_core::node::CgroupDriver;

    use super::*;
    use crate::CgroupOptions;

    #[tokio::test]
    async fn records_are_kept_over_restarts_and_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let open = || {
            let cgroups = CgroupOptions { enabled: false, ..CgroupOptions::new(CgroupDriver::Cgroupfs, false) };
            Files::new(at("root"), at("log/pods"), at("log/containers"), cgroups).unwrap()
        };
        let files = open();
        let mut record = PullRecord::new("sha256:aa");
        assert_eq!(files.pulled("sha256:aa").await.unwrap(), None);
        assert!(files.all_pulled().await.unwrap().is_empty() && files.pulling().await.unwrap().is_empty());
        files.keep_pulled(&record).await.unwrap();
        record.note("foo.io/a", &Owner::Node);
        files.keep_pulled(&record).await.unwrap();
        let names = BTreeSet::from(["foo.io/b:1".to_owned()]);
        files.keep_pulling(&names).await.unwrap();
        let files = open();
        assert_eq!(files.pulled("sha256:aa").await.unwrap(), Some(record));
        assert_eq!(files.pulling().await.unwrap(), names);
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("root/image_manager"), mode("root/image_manager/pulled")), (0o700, 0o700));
        let path = "root/image_manager/pulled/sha256:aa";
        assert_eq!((mode(path), mode("root/image_manager/pulling.json")), (0o600, 0o600));
        std::fs::write(at(path), "{").unwrap();
        for _ in 0..2 {
            assert_eq!(files.pulled("sha256:aa").await.unwrap(), Some(PullRecord::lost("sha256:aa")));
        }
        std::fs::write(at("root/image_manager/pulling.json"), "").unwrap();
        assert!(files.pulling().await.unwrap_err().to_string().contains("is damaged"));
        assert!(files.pulled("../x").await.is_err());
        assert_eq!(files.all_pulled().await.unwrap(), ["sha256:aa"]);
        files.forget_pulled("sha256:aa").await.unwrap();
        files.forget_pulled("sha256:aa").await.unwrap();
        assert!(files.all_pulled().await.unwrap().is_empty());
    }
}
