//! Copies protoc and the definitions that come with it to the directory given.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process,
};

fn main() -> Result<(), Box<dyn Error>> {
    let to = PathBuf::from(env::args_os().nth(1).ok_or("say where to put protoc")?);
    // Built aside and moved in one step, since several builds may want it at once.
    let aside = to.with_extension(process::id().to_string());
    fs::create_dir_all(aside.join("bin"))?;
    // protoc finds its own definitions in `../include`.
    fs::copy(
        protoc_bin_vendored::protoc_bin_path()?,
        aside.join("bin/protoc"),
    )?;
    copy(
        &protoc_bin_vendored::include_path()?,
        &aside.join("include"),
    )?;
    if let Err(error) = fs::rename(&aside, &to) {
        fs::remove_dir_all(&aside)?;
        if !to.join("bin/protoc").exists() {
            return Err(error.into());
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
