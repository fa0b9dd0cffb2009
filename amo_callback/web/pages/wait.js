(() => {
  /* After 20 minutes the handle has expired, and the page at this address says so. */
  const end = Date.now() + 21 * 60000;
  const address = location.pathname + location.search;
  const look = async () => {
    const stop = new AbortController();
    const limit = setTimeout(() => stop.abort(), 15000);
    try {
      const answer = await fetch(address, {headers: {Accept: "text/html"}, signal: stop.signal});
      /* Only a page with the result has the app's button; a proxy's error page has none. The pattern does not match this script. */
      if (/\sid="open"/.test(await answer.text())) return location.replace(address);
    } catch { /* The network may return. */ }
    clearTimeout(limit);
    if (Date.now() < end) setTimeout(look, 2000);
  };
  setTimeout(look, 2000);
})();
