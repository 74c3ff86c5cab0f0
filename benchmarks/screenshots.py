"""Make the README's pictures in the real App, from the demo: `python -m benchmarks.screenshots`."""

import io
import os
import sys

import fiftyone as fo
import matplotlib as mpl
import numpy as np
from fiftyone import ViewField as F
from matplotlib import pyplot as plt
from PIL import Image

from inference.images import read_image
from inference.joints import COCO

from .app import DEMO_DATASET
from .browser import REPOSITORY, open_app, serve
from .demo import with_map

FOLDER = REPOSITORY / "assets" / "screenshots"
OVERVIEW = REPOSITORY / "demo_output" / "overview.png"
MAX_BYTES = 400_000
WEAK_JOINTS = {"astronaut": ("left_shoulder", "right_elbow"), "camera": ("left_elbow", "right_knee")}


def save(picture: Image.Image, name: str) -> None:
    """Write a PNG that a README can carry: 256 colours, as large as MAX_BYTES allows."""
    picture = picture.convert("RGB")
    scale = 1.0
    while True:
        size = (round(picture.width * scale), round(picture.height * scale))
        small = picture.resize(size, Image.Resampling.LANCZOS) if scale < 1 else picture
        encoded = io.BytesIO()
        # the method that keeps the few vivid pixels of a map as vivid as they are
        small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2).save(encoded, "png", optimize=True)
        if encoded.tell() <= MAX_BYTES:
            break
        scale *= 0.9
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / name
    path.write_bytes(encoded.getvalue())
    print(f"{path.relative_to(REPOSITORY)}: {size[0]}x{size[1]}, {len(encoded.getvalue()) // 1000} KB", flush=True)


def draw_weak_joints(demo: fo.Dataset) -> Image.Image:
    """What the bundled model does not see well: maps of single joints, with a cross where the person's joint is put."""
    mpl.use("Agg")
    shown = [(name, joint) for name, joints in WEAK_JOINTS.items() for joint in joints]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.9), facecolor="#16181d")
    for axis, (name, joint) in zip(axes, shown, strict=True):
        sample = demo.match(F("filepath").contains_str(f"{name}.")).first()
        photo, values = read_image(sample.filepath), sample[f"pose_{joint}"].get_map()
        axis.imshow(with_map(photo, values))
        for person in sample.pose_keypoints.keypoints:
            x, y = np.array(person.points[COCO.joints.index(joint)]) * (photo.shape[1], photo.shape[0])
            axis.plot(x, y, "x", color="white", markersize=10, markeredgewidth=2)  # nothing where it is NaN
        axis.set_title(f"{joint.replace('_', ' ')}, at most {values.max() / 255:.2f}", color="white", fontsize=11)
        axis.axis("off")
    figure.tight_layout(pad=0.8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, facecolor=figure.get_facecolor())
    plt.close(figure)
    return Image.open(drawn)


def main() -> None:
    if not fo.dataset_exists(DEMO_DATASET) or not OVERVIEW.exists():
        sys.exit("There is no demo to photograph: `make demo` comes first.")
    demo = fo.load_dataset(DEMO_DATASET)
    save(Image.open(OVERVIEW), "overview.png")
    save(draw_weak_joints(demo), "weak_joints.png")

    # the form names the folder that the maps go to: not one of this machine
    os.environ["FIFTYONE_DEFAULT_DATASET_DIR"] = "/tmp/fiftyone"
    # the form as a person sees it who has photos and no maps yet
    fresh = fo.Dataset("my-photos", overwrite=True, persistent=True)
    try:
        fresh.add_samples([fo.Sample(filepath=path) for path in demo.values("filepath")], progress=False)
        with serve(DEMO_DATASET) as address, open_app(address, viewport=(1280, 620)) as app:
            app.open(DEMO_DATASET)
            app.switch("pose_max", on=True)
            app.enlarge_photos()
            save(_picture(app.page.screenshot()), "grid.png")
            app.page.set_viewport_size({"width": 1280, "height": 1000})  # the whole form without scrolling
            app.open(fresh.name)
            save(_picture(app.prompt("Generate pose heatmaps").screenshot()), "form.png")
    finally:
        fresh.delete()
    photograph_panels()


def photograph_panels() -> None:
    """With a server of their own, since open panels persist in it."""
    with serve(DEMO_DATASET) as address, open_app(address, viewport=(1400, 720)) as app:
        app.open(DEMO_DATASET)
        app.enlarge_photos()
        app.open_panel("pose_heatmaps")
        app.press("Hide the skeletons")
        app.press("Show all joints")
        app.page.mouse.move(0, 0)
        app.settle()
        save(_picture(app.page.screenshot()), "panel.png")
        app.page.set_viewport_size({"width": 1500, "height": 1300})
        app.settle()
        app.open_sample(0)
        app.open_panel("pose_heatmaps_sample")
        app.press("Show the joints: arms")
        app.page.mouse.move(0, 0)
        app.settle()
        # without the sidebar, which names the photo's folder on this machine
        save(_picture(app.page.screenshot()).crop((38, 36, 1163, 1264)), "panel-sample.png")


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


if __name__ == "__main__":
    main()
