/* An app hears of a change by a push of its backend's: here the page asks. */
setInterval(async () => {
  try {
    const status = await (await fetch("/phone/status")).json();
    if ((status.connected ? "yes" : "no") !== document.body.dataset.connected) location.reload();
  } catch { /* The demo has ended. */ }
}, 2000);
