//! What is journaled of a pod's host ports: a file per pod, from before the first port is taken until after the last is
//! given back.

use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::HostPortError;
use super::mapping::HostPort;
use crate::network::record_file;

const FORMAT: u32 = 1;

/// The pod that ports belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Of its sandbox.
    pub id: String,
    /// Kubernetes' namespace.
    pub namespace: String,
    /// Kubernetes' name.
    pub name: String,
}

/// Everything needed to take a pod's ports again, or to give them back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub pod: PodName,
    pub ports: Vec<HostPort>,
    /// The pod's addresses, at most one of a family, with their networks' prefix lengths; none before they are known.
    pub addresses: Vec<IpNet>,
    /// The interface that was opened for packets to and from 127.0.0.1.
    pub loopback: Option<String>,
}

impl Record {
    pub(super) fn new(pod: PodName, ports: Vec<HostPort>) -> Self {
        Self { format: FORMAT, pod, ports, addresses: Vec::new(), loopback: None }
    }
}

/// The directory of records.
#[derive(Debug)]
pub(super) struct Records(pub PathBuf);

impl Records {
    pub(super) async fn save(&self, record: &Record) -> Result<(), HostPortError> {
        let path = self.path(&record.pod.id)?;
        let bytes = serde_json::to_vec(record).map_err(|e| failed("write", &path)(e.into()))?;
        let (directory, target) = (self.0.clone(), path.clone());
        let write = tokio::task::spawn_blocking(move || record_file::replace(&directory, &target, &bytes));
        write.await.map_err(|e| failed("write", &path)(e.into()))?.map_err(failed("write", &path))
    }

    pub(super) async fn forget(&self, id: &str) -> Result<(), HostPortError> {
        let path = self.path(id)?;
        let target = path.clone();
        let removal = tokio::task::spawn_blocking(move || record_file::remove(&target));
        removal.await.map_err(|e| failed("remove", &path)(e.into()))?.map_err(failed("remove", &path))
    }

    /// Every record; one that cannot be read is told of and left.
    pub(super) fn load(&self) -> Result<Vec<Record>, HostPortError> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.0))?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list", &self.0))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(record) => records.push(record),
                    Err(error) => tracing::error!(path = %path.display(), %error, "cannot read a record of host ports"),
                }
            }
        }
        Ok(records)
    }

    fn path(&self, id: &str) -> Result<PathBuf, HostPortError> {
        let path = self.0.join(format!("{id}.json"));
        if record_file::is_plain(id) {
            Ok(path)
        } else {
            Err(failed("name", &path)(io::ErrorKind::InvalidInput.into()))
        }
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&std::fs::read(path)?)?;
    if record.format == FORMAT {
        return Ok(record);
    }
    let why = format!("its format {} is not {FORMAT}", record.format);
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostPortError + use<> {
    let path = path.to_owned();
    move |source| HostPortError::Record { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_are_found_again_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records(directory.path().join("host-ports"));
        assert!(records.load().unwrap().is_empty());
        let pod = PodName { id: "a".into(), namespace: "default".into(), name: "web".into() };
        let record = Record { addresses: vec!["10.1.0.2/24".parse().unwrap()], ..Record::new(pod, Vec::new()) };
        records.save(&record).await.unwrap();
        std::fs::write(records.0.join("b.json"), "{").unwrap();
        assert_eq!(records.load().unwrap(), [record]);
        records.forget("a").await.unwrap();
        records.forget("a").await.unwrap();
        assert!(records.load().unwrap().is_empty());
        assert!(records.forget("../x").await.is_err());
    }
}
