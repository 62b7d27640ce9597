// Files that were dropped on a page, those of folders included.

/** [{file, folder}] of a drop; `folder` in which a file was, empty: in none. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, folder: "" }));
  return (await Promise.all(entries.map(within))).flat();
}

/** Let somebody choose files, or a folder; `take` is given what was chosen, as `filesOf` gives it. */
export function chooseFiles(take, { isFolder = false, accept = "" } = {}) {
  const input = Object.assign(document.createElement("input"), { type: "file", multiple: true, webkitdirectory: isFolder, accept });
  input.addEventListener("change", () => take([...input.files].map((file) => ({ file, folder: (file.webkitRelativePath || "").split("/").slice(0, -1).join("/") }))));
  input.click();
}

async function within(entry) {
  if (entry.isFile) {
    const file = await new Promise((take, refuse) => entry.file(take, refuse));
    return [{ file, folder: entry.fullPath.split("/").slice(1, -1).join("/") }];
  }
  const reader = entry.createReader();
  const files = [];
  for (let some; (some = await new Promise((take, refuse) => reader.readEntries(take, refuse))).length; ) for (const inner of some) files.push(...(await within(inner)));
  return files;
}
