"""Headers that every answer carries, against what a browser could make of it.

None of CORS is among them: other sites' pages may not read answers.
"""

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    # JSON that holds somebody's HTML is JSON.
    (b"x-content-type-options", b"nosniff"),
    # Neither as a script nor as an image of another site's page.
    (b"cross-origin-resource-policy", b"same-origin"),
)
