//! Objects of a bucket as files: each is read to the disk once, and kept there for as long as the bucket has it unchanged.
//!
//! A copy's name is a hash of what the list says of its object (place, size, ETag), and it has that name only when it is
//! whole: what a killed load had read stays read, and the next night reads what is new. Beside the copies stands a list of
//! them with the names people know (`copies.json`), for whoever looks at them later. What the pattern does not mean any
//! more goes at the end of each load; a stage that is gone leaves its folder to vacuum.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures::TryStreamExt as _;
use futures::stream::FuturesUnordered;
use sha2::{Digest, Sha256};

use super::{SourceFile, until_stopped};
use crate::config::settings::{Settings, StageKind};
use crate::domain::{BucketAddress, PipelineName, StageName};
use crate::exports::{Bucket, ExportError, Object};
use crate::lake::{Lake, LakeError};
use crate::stage::{StageContext, StageError};

/// All copies of all stages, below the lake.
const FOLDER: &str = "work/objects";
const LIST: &str = "copies.json";
/// What is being read; whole copies have no ending.
const UNFINISHED: &str = "partial";
/// Objects on their way at a time.
const AT_ONCE: usize = 4;

/// The objects that a stage's pattern means, as they are listed.
///
/// # Errors
///
/// [`StageError::Export`], [`StageError::Interrupted`].
pub async fn listed(cx: &StageContext<'_>, address: &BucketAddress) -> Result<Vec<Object>, StageError> {
    let bucket = Bucket::open(address, cx.hands.clock).map_err(ExportError::from)?;
    until_stopped(cx, async { Ok(bucket.list().await.map_err(ExportError::from)?) }).await
}

/// Copies of objects, read where they are not here yet, in the order of the objects.
///
/// # Errors
///
/// As [`listed`]; [`StageError::Lake`] when the disk does not do its part. What was whole before stays.
pub async fn fetched(
    cx: &StageContext<'_>,
    address: &BucketAddress,
    objects: &[Object],
) -> Result<Vec<SourceFile>, StageError> {
    let shelf = Shelf::of(&cx.hands.lake, &cx.run.pipeline, &cx.stage.name);
    shelf.prepare()?;
    let missing: Vec<Object> = objects.iter().filter(|object| !shelf.has(address, object)).cloned().collect();
    if missing.len() < objects.len() {
        let here = objects.len() - missing.len();
        tracing::info!(stage = %cx.stage.name, objects = here, "{here} objects are here from before");
    }
    if !missing.is_empty() {
        let bucket = Bucket::open(address, cx.hands.clock).map_err(ExportError::from)?;
        until_stopped(cx, shelf.take_all_in(cx, (address, &bucket), missing)).await?;
    }
    shelf.settle(address, objects)?;
    let known = |object: &Object| SourceFile {
        on_disk: shelf.absolute(&name_of(address, object)),
        shown: PathBuf::from(address.object(&object.key)),
    };
    Ok(objects.iter().map(known).collect())
}

/// The copies that a stage's last load left, for who looks without asking the bucket.
pub fn copies(lake: &Lake, pipeline: &PipelineName, stage: &StageName) -> Vec<SourceFile> {
    let shelf = Shelf::of(lake, pipeline, stage);
    let listed = std::fs::read(shelf.absolute(LIST)).ok();
    let listed: BTreeMap<String, String> =
        listed.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let files = listed
        .into_iter()
        .map(|(shown, name)| SourceFile { on_disk: shelf.absolute(&name), shown: PathBuf::from(shown) });
    files.filter(|file| file.on_disk.is_file()).collect()
}

/// Every whole copy of a stage that the settings name, relative to the lake.
pub fn in_use(lake: &Lake, settings: &Settings) -> Vec<String> {
    let mut files = Vec::new();
    for (name, pipeline) in &settings.pipelines {
        for stage in &pipeline.stages {
            if matches!(&stage.kind, StageKind::LoadUsers(plan) if plan.bucket.is_some()) {
                let shelf = Shelf::of(lake, name, &stage.name);
                files.extend(
                    shelf.names().into_iter().filter(|name| !is_unfinished(name)).map(|name| shelf.path(&name)),
                );
            }
        }
    }
    files
}

/// Removes every copy of every stage; the next load reads them anew. Only while no run goes on.
///
/// # Errors
///
/// [`LakeError::Remove`].
pub fn throw_away(lake: &Lake) -> Result<(), LakeError> {
    let path = lake.absolute(FOLDER);
    match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(LakeError::Remove { path, source }),
        _ => Ok(()),
    }
}

/// Where the copies of a stage lie. The run's lease makes it one process's.
struct Shelf<'a> {
    lake: &'a Lake,
    folder: String,
}

impl<'a> Shelf<'a> {
    fn of(lake: &'a Lake, pipeline: &PipelineName, stage: &StageName) -> Self {
        Self { lake, folder: format!("{FOLDER}/{pipeline}/{stage}") }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn absolute(&self, name: &str) -> PathBuf {
        self.lake.absolute(&self.path(name))
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.lake.absolute(&self.folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Makes the folder, and removes what a killed load had not finished.
    fn prepare(&self) -> Result<(), LakeError> {
        let path = self.lake.absolute(&self.folder);
        std::fs::create_dir_all(&path).map_err(|source| LakeError::CreateFolder { path, source })?;
        self.names().iter().filter(|name| is_unfinished(name)).try_for_each(|name| self.lake.remove(&self.path(name)))
    }

    fn has(&self, address: &BucketAddress, object: &Object) -> bool {
        let path = self.absolute(&name_of(address, object));
        std::fs::metadata(path).is_ok_and(|meta| meta.len() == object.bytes)
    }

    async fn take_all_in(
        &self,
        cx: &StageContext<'_>,
        from: (&BucketAddress, &Bucket),
        objects: Vec<Object>,
    ) -> Result<(), StageError> {
        let (mut done, total) = (0, u64::try_from(objects.len()).ok());
        let mut waiting = objects.into_iter();
        let mut on_their_way = FuturesUnordered::new();
        on_their_way.extend(waiting.by_ref().take(AT_ONCE).map(|object| self.take_in(from, object)));
        while on_their_way.try_next().await?.is_some() {
            done += 1;
            cx.tell("objects", done, total);
            on_their_way.extend(waiting.next().map(|object| self.take_in(from, object)));
        }
        Ok(())
    }

    async fn take_in(&self, (address, bucket): (&BucketAddress, &Bucket), object: Object) -> Result<(), StageError> {
        let name = name_of(address, &object);
        let unfinished = format!("{name}.{UNFINISHED}");
        if let Err(error) = bucket.fetch(&object, &self.absolute(&unfinished)).await {
            self.lake.remove(&self.path(&unfinished))?;
            return Err(ExportError::from(error).into());
        }
        Ok(self.lake.rename(&self.path(&unfinished), &self.path(&name))?)
    }

    /// Lists the copies of these objects, and removes all others.
    fn settle(&self, address: &BucketAddress, objects: &[Object]) -> Result<(), StageError> {
        let listed: BTreeMap<String, String> =
            objects.iter().map(|object| (address.object(&object.key), name_of(address, object))).collect();
        let text = serde_json::to_vec(&listed).expect("texts are JSON");
        let unfinished = format!("{LIST}.{UNFINISHED}");
        let path = self.absolute(&unfinished);
        std::fs::write(&path, text).map_err(|source| LakeError::Write { path, source })?;
        self.lake.rename(&self.path(&unfinished), &self.path(LIST))?;
        let kept: BTreeSet<&str> = listed.values().map(String::as_str).chain([LIST]).collect();
        let mut gone = self.names().into_iter().filter(|name| !kept.contains(name.as_str()));
        gone.try_for_each(|name| Ok(self.lake.remove(&self.path(&name))?))
    }
}

fn is_unfinished(name: &str) -> bool {
    name.ends_with(UNFINISHED)
}

/// What a copy is called: other content has another name.
fn name_of(address: &BucketAddress, object: &Object) -> String {
    let told = (&address.endpoint, &address.bucket, &object.key, object.bytes, &object.etag);
    Sha256::digest(format!("{told:?}").as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
