// Filters and search of the claims; contents that fold where the page is narrow.
const form = document.getElementById("filters")
const rows = [...document.querySelectorAll("#found tr.row")]
const words = new Map(rows.map(row => [row, (row.parentNode.dataset.words + " " + row.textContent).toLowerCase()]))

function filter() {
  const asked = new FormData(form)
  const parts = asked.get("words").toLowerCase().split(/\s+/).filter(Boolean)
  for (const row of rows) {
    const fits = ["verdict", "paper", "direction"].every(name => !asked.get(name) || row.dataset[name] === asked.get(name))
    row.hidden = !fits || !parts.every(part => words.get(row).includes(part))
  }
  for (const claim of document.querySelectorAll("#found tbody.claim"))
    claim.hidden = [...claim.querySelectorAll("tr.row")].every(row => row.hidden)
  for (const head of document.querySelectorAll("#found tbody.paper"))
    head.hidden = !document.querySelector(`#found tbody.claim[data-paper="${head.dataset.paper}"]:not([hidden])`)
  form.querySelector("output").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`
}

form.hidden = false
form.addEventListener("input", filter)
form.addEventListener("reset", () => setTimeout(filter))
form.addEventListener("submit", event => event.preventDefault())
filter()

const contents = document.getElementById("contents")
const wide = matchMedia("(min-width: 70rem)")
const fold = () => { contents.open = wide.matches }
wide.addEventListener("change", fold)
contents.addEventListener("click", event => { if (event.target.closest("a") && !wide.matches) contents.open = false })
fold()
