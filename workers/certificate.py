"""What an agent signs with: a key of its own, and a certificate that it issues itself where it holds the secret of the mesh."""

from __future__ import annotations

from ..core.envelopes import TaskKeys
from ..settings import Settings
from ..store import signing
from ..store.store import Store


class OwnCertificate:
    """The certificate of an agent that holds the secret, limited by the policy of its type, and renewed while it lives.

    From its making on, this process and what it forks sign with it. Raises `Invalid` for a policy file that is wrong.
    """

    def __init__(self, store: Store, settings: Settings, agent_id: str) -> None:
        self._settings, self._agent_id = settings, agent_id
        self._signer = signing.AgentSigner(settings.namespace)
        self._kid, self._renew_at_ms = "", 0
        self.renew(store)
        keys = TaskKeys.of_keyring(settings.keyring, settings.namespace)
        signing.become(settings.namespace, self._signer, keys)

    def renew(self, store: Store) -> None:
        """Issue another where half of its life is over, or another secret is in force. Raises `StoreUnavailable`."""
        kid, now_ms = signing.kid_in_force(self._settings), store.now_ms()
        if kid == self._kid and now_ms < self._renew_at_ms:
            return
        settings = self._settings
        self._renew_at_ms = signing.certify(
            self._signer,
            settings.keyring,
            kid,
            subject=self._agent_id,
            agent_type=settings.agent_type,
            submit=settings.policies.patterns(settings.agent_type, settings.namespace, "submit"),
            now_ms=now_ms,
        )
        self._kid = kid
