// Sets every equation with the KaTeX that lies beside this file.
for (const element of document.querySelectorAll("span.math, div.math")) {
  katex.render(element.textContent, element, { displayMode: element.tagName === "DIV", throwOnError: false });
}
