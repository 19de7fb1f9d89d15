"use strict"
// Copy a block of code; where the clipboard is out of reach, select it and let the browser copy.
for (const button of document.querySelectorAll(".code button")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code")
    let done = true
    try {
      await navigator.clipboard.writeText(code.textContent)
    } catch {
      const range = document.createRange()
      range.selectNodeContents(code)
      const selection = window.getSelection()
      selection.removeAllRanges()
      selection.addRange(range)
      done = document.execCommand("copy")
    }
    button.textContent = done ? "Copied" : "Press Ctrl-C"
    setTimeout(() => { button.textContent = "Copy" }, 2000)
  })
}
