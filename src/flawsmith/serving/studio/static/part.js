// A part's image as it was kept, with its own size.
import { get, ofLine } from "./api.js";
import { decoded, pictureOf } from "./image-view.js";

/** {picture, size} of a record's image, scaled where it is large; null where the browser cannot show it. */
export const imageOf = (id) => imageAt(`/inspections/${id}/image?width=2400`);

/** The same of an address of the line that scales an image. */
export async function imageAt(path) {
  const response = await get(ofLine(path), { as: "response" });
  const size = response.headers.get("Image-Size").split("x").map(Number);
  const picture = await pictureOf(await response.blob());
  return picture && { picture, size };
}

/** The record's anomaly map, computed again; null where its model is no more. */
export async function heatOf(id) {
  return decoded(await get(ofLine(`/inspections/${id}/heat`)));
}

/** Where a region lies, in words: "upper left", "centre", "lower edge". */
export function placeOf(region, size) {
  const [x0, y0, x1, y1] = region.box;
  const [x, y] = [(x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1]];
  const row = y < 0.36 ? "upper" : y > 0.64 ? "lower" : "";
  const column = x < 0.36 ? "left" : x > 0.64 ? "right" : "";
  return [row, column].filter(Boolean).join(" ") || "centre";
}
