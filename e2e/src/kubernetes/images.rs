//! The images that the cluster itself needs: `pause`, which holds a pod's namespaces, and `box`,
//! a shell with the usual tools for pods of tests. Both hold one static program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use super::program::Program;
use super::settings::PAUSE_IMAGE;
use crate::image::Image;

/// In pods: `keelson/box:1`.
pub const BOX_IMAGE: &str = "docker.io/keelson/box:1";
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// Makes both tarballs in the directory that every node imports when it starts.
pub fn write_own(layout: &Layout, programs: &Path) -> Result<()> {
    write_pause(layout, &programs.join("pause"))?;
    let Some(busybox) = BUSYBOX.into_iter().map(Path::new).find(|path| path.exists()) else {
        bail!("busybox is missing: apt-get install busybox-static");
    };
    write_box(layout, busybox)
}

fn write_pause(layout: &Layout, program: &Path) -> Result<()> {
    let root = layout.join("images/pause-root");
    fs::create_dir_all(&root)?;
    fs::copy(program, root.join("pause")).with_context(|| format!("copy {}", program.display()))?;
    let image = Image {
        name: PAUSE_IMAGE.to_owned(),
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        ..Image::default()
    };
    write(layout, "pause", &image)
}

fn write_box(layout: &Layout, busybox: &Path) -> Result<()> {
    let root = layout.join("images/box-root");
    for directory in ["bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    let applets = Program::new(busybox).words("--list").run()?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| applet.to_owned())?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    let image = Image {
        name: BOX_IMAGE.to_owned(),
        entrypoint: vec!["/bin/sh".to_owned()],
        ..Image::default()
    };
    write(layout, "box", &image)
}

fn write(layout: &Layout, name: &str, image: &Image) -> Result<()> {
    let file = |suffix: &str| layout.join(format!("images/{name}{suffix}"));
    image.write_tarball(&file("-root"), &file("-oci"), &file(".tar"))?;
    for directory in ["-root", "-oci"] {
        fs::remove_dir_all(file(directory))?;
    }
    Ok(())
}
