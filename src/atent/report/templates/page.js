
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const number = row => parseFloat(row.cells[column].dataset.value);
    const text = row => row.cells[column].textContent;
    const compare = (a, b) => {
      const x = number(a), y = number(b);
      if (!isNaN(x) && !isNaN(y)) return sign * (x - y);
      if (isNaN(x) && isNaN(y)) return sign * text(a).localeCompare(text(b), "en", { numeric: true });
      return isNaN(x) ? 1 : -1;
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
