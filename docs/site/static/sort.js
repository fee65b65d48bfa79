// A click on a heading of the leaderboard sorts its table by that column, again the other way round.
addEventListener("DOMContentLoaded", () => {
  if (!location.pathname.endsWith("/leaderboard.html")) return
  for (const table of document.querySelectorAll("article table")) {
    const body = table.tBodies[0]
    const key = (row, place) => {
      const text = row.cells[place].textContent.trim()
      return isNaN(parseFloat(text)) ? text : parseFloat(text)
    }
    ;[...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button")
      button.append(...head.childNodes)
      head.append(button)
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending"
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort")
        head.setAttribute("aria-sort", up ? "ascending" : "descending")
        const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1
        const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a, place), key(b, place)))
        body.append(...rows)
      })
    })
  }
})
