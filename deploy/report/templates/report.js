for (const table of document.querySelectorAll("table.sortable")) {
  const place = (row, column) => {
    let at = 0;
    for (const cell of row.cells) {
      at += cell.colSpan;
      if (at > column) return cell.textContent.trim();
    }
    return "";
  };
  const compare = (one, other) => {
    const [a, b] = [one, other].map((text) => parseFloat(text.replace("−", "-").replace(/^[≥≤\s]+/, "")));
    if (!isNaN(a) && !isNaN(b)) return a - b;
    return isNaN(a) && isNaN(b) ? one.localeCompare(other) : isNaN(a) ? -1 : 1;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.querySelector(".group"));
        rows.sort((one, other) => (up ? 1 : -1) * compare(place(one, column), place(other, column)));
        body.append(...rows);
      }
    };
    head.tabIndex = 0;
    head.setAttribute("aria-sort", "none");
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
