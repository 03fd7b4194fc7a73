// Search, filter and sort the table of samples; what is filtered out fades in the pictures. The page reads without it.
const table = document.getElementById("samples"), body = table.tBodies[0], rows = [...body.rows];
const form = document.getElementById("find"), words = document.getElementById("words");
const points = new Map(rows.map(row => [`#${row.id}`, []]));
for (const point of document.querySelectorAll("svg a")) points.get(point.href.baseVal)?.push(point);

function each(row, change) {
  for (const point of points.get(`#${row.id}`)) change(point.classList);
}

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean), which = form.elements.which.value;
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(which === "" || row.dataset.kind.split(" ").includes(which)) || !wanted.every(word => text.includes(word));
    each(row, classes => classes.toggle("off", row.hidden));
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} ${table.dataset.rows ?? "samples"}`;
}

function sort(head, column) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  rows.sort((a, b) => key(a).localeCompare(key(b), "en", {numeric: true}) * (up ? 1 : -1));
  body.append(...rows);
}

[...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head, column));
  head.append(button);
});
for (const row of rows) {
  row.addEventListener("mouseenter", () => each(row, classes => classes.add("marked")));
  row.addEventListener("mouseleave", () => each(row, classes => classes.remove("marked")));
}
form.addEventListener("input", filter);
form.addEventListener("submit", event => event.preventDefault());
window.addEventListener("hashchange", () => {  // a click on a point leads to a row, which may be filtered out
  const row = document.getElementById(location.hash.slice(1));
  if (row?.hidden) {
    form.reset();
    filter();
    row.scrollIntoView();
  }
});
form.hidden = false;
filter();
