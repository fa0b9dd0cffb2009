"""A page's accessibility, checked by axe-core, and its elements that overflow the screen."""

from importlib import resources

from playwright.async_api import Frame, Page

OVERFLOW = """() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = [...document.body.querySelectorAll('*')].filter(each => {
    const box = each.getBoundingClientRect();
    return box.width && (box.right > innerWidth + .5 || box.left < -.5 || each.scrollWidth > each.clientWidth + 1
      && getComputedStyle(each).display !== 'inline');
  });
  return [...(wide > 0 ? [`the page by ${wide}`] : []), ...out.map(each => each.outerHTML.slice(0, 80))];
}"""
_ALL = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]}
_CONTRAST = {"type": "rule", "values": ["color-contrast"]}
_AXE = """async runOnly => {
  const {violations, incomplete, passes} = await axe.run(document, {runOnly});
  const describe = rules => rules.flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.target} ${
    node.failureSummary ?? ''}`));
  return {
    violations: describe(violations), undecided: describe(incomplete),
    contrast: passes.filter(rule => rule.id === 'color-contrast').flatMap(rule => rule.nodes.map(
      node => node.html.match(/^<(\\w+)/)[1])),
  };
}"""


async def axe(page: Page | Frame, *, contrast_only: bool = False) -> dict[str, list[str]]:
    """Run axe-core on the current page; with `contrast_only`, only its contrast rule, after an earlier full run."""
    if not contrast_only:
        source = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        await page.evaluate(f"() => {{ {source} }}")
    found: dict[str, list[str]] = await page.evaluate(_AXE, _CONTRAST if contrast_only else _ALL)
    return found
